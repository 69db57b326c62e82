"""python ppo.py --quick: the whole way in the time of a coffee. Not needed to understand RLHF.

The same stages with smaller settings, in a folder of its own. The base model is the one that the
project ships, there is one round of rankings, and PPO-ptx is the only policy. The evaluation has
fewer prompts, and shows the reference in place of PPO without the pretraining mix.
"""
from data import figures, files, own
from data.files import UserError

SHIPPED = files.FOLDER.parent / "notebooks" / "checkpoints" / "gpt.pt"      # the base model

# What differs from the defaults, by stage. A flag beside --quick counts more.
SETTINGS = {
    "sft": {"epochs": 6, "mix_epochs": 6},
    "reward": {"prompts_1": 3_000},
    "ppo": {"out": "out_quick", "iterations": 24},
}
N_PROMPTS = {True: 800, False: None}                    # of the evaluation, by config.quick
MODELS = ["gpt", "gpt_prompted", "sft", "sft_best_of_16", "sft_mix", "ppo_ptx"]


def settings(config, stage):
    """Return the settings of a stage that differ from its defaults."""
    return SETTINGS[stage] if config.quick else {}


def last_reward(config):
    """Return the name of the reward model of the last round of rankings."""
    return "reward_1" if files.one_round(config) else "reward"


def models(config):
    """Return the names of the models that the evaluation compares."""
    if files.OWN:
        return own.MODELS
    return MODELS if files.one_round(config) else figures.MODELS


def base_model(config):
    """--quick: put the shipped base model into the folder, unless `python model.py` made one there.

    Its seed becomes this run's. In another world it would not know the facts, so pretraining makes
    a new one. Without --quick, a folder of --quick raises UserError.
    """
    path = files.checkpoint(config, "gpt")
    if not config.quick:
        refuse(path)
        if not files.one_round(config):
            refuse(files.checkpoint(config, "ppo_ptx"))
            refuse(files.checkpoint(config, "reward_1"))
        return
    if path.exists() or not SHIPPED.exists():
        return
    saved = files.load_checkpoint(SHIPPED)
    if saved["extra"]["world"] != files.world_hash():
        print(f"{SHIPPED} was made in another world: the base model is trained first\n")
        return
    extra = saved["extra"] | {"seed": config.seed, "borrowed": True}
    weights = {name: tensor.float() for name, tensor in saved["state"].items()}
    files.save(path, saved["kind"], saved["config"], weights, extra)


def refuse(path):
    """Raise UserError if a run of one round made a checkpoint: the shipped model, a policy, or a
    reward model from people's rankings."""
    if not path.exists():
        return
    extra = files.load_checkpoint(path)["extra"]
    flag = ""
    if "borrowed" in extra:
        flag = "--quick"
    elif "reward_1" in extra.get("parents", {}):
        flag = "--quick or --rankings"
    elif "rankings" in extra.get("settings", {}):
        flag = "--rankings"
    if flag:
        raise UserError(f"{path} is there because of {flag}: choose another folder with --out")
