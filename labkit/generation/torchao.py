"""peft beside an old torchao, as on free Colab (data/landscape/colab_runtime.csv)."""

from labkit.generation.bits import hidden


def without_old_torchao() -> None:
    """Call before peft makes, loads or merges an adapter.

    peft asks whether torchao could be in use before it lays an adapter on any layer, and raises ImportError where it
    finds one older than 0.16 (peft.import_utils.is_torchao_available), needed or not. Nothing here needs torchao, and
    to replace a compiled package under a live kernel is worse than to do without. So the question is asked once with
    torchao out of sight, and peft remembers the answer.
    """
    from peft.import_utils import is_torchao_available

    try:
        is_torchao_available()
    except ImportError:
        with hidden("torchao"):
            is_torchao_available()
