import data  # noqa: F401, before torch, because it sets how torch's threads wait
