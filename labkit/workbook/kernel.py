"""The kernel that a run starts."""

from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager


class ThisInterpreter(AsyncKernelManager):
    """Starts ipykernel in the interpreter that runs labkit, whatever kernel is installed under the name "python3".

    A kernelspec in the home folder shadows the one of a virtual environment, so a run that trusts the name may
    execute the notebooks with another Python, which then lacks the packages.
    """

    # Encrypt the kernel's messages where both sides can: other users of the machine share the loopback device.
    transport_encryption = "auto"

    @property
    def kernel_spec(self) -> KernelSpec:
        mine = get_kernel_dict()
        return KernelSpec(
            argv=[*mine["argv"], "--IPKernelApp.log_level=CRITICAL"],  # a kernel told to end logs that as an error
            display_name=mine["display_name"],
            language=mine["language"],
            metadata=mine.get("metadata", {}),
        )
