"""What has to happen before torchtune is imported, which the `tune` command does before any code of ours runs."""

import logging

_NOTICE = "Skipping import of cpp extensions"


def hide_torchao_notice() -> None:
    """Keep back torchao's line about C++ extensions, which neither torchtune nor this package uses; its other messages stay.

    torchao 0.15 prints it at every import beside the torch that is pinned here. torch calls this function at the end of its own
    import: it is declared as an entry point of the group `torch.backends`, PyTorch's hook for extensions.
    """
    logging.getLogger("torchao").addFilter(lambda record: not record.getMessage().startswith(_NOTICE))
