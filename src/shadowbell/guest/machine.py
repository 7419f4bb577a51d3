"""One virtual machine: QEMU as a child process, its command channel into the guest, and QMP."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from .agent import Agent, AgentError
from .child import Child, ChildError
from .locate import Images, Qemu, find_images, find_qemu
from .qmp import Qmp, QmpError

Firmware = Literal["direct", "bios", "uefi"]
Device = Mapping[str, Any]

CONNECT_TIMEOUT = 30.0
BOOT_TIMEOUT = 120.0  # an emulated boot takes 6 s, on a busy machine several times that


class GuestError(ChildError):
    """The guest or QEMU failed; the message ends with what they last said."""


def available() -> str | None:
    """None when a guest can be booted here, else why not."""
    if find_qemu() is None:
        return "no QEMU >= 10.1 with vfio-user-pci: run `make qemu`"
    if find_images() is None:
        return "no guest kernel and initramfs: run `make guest`"
    return None


def disk(path: Path, **properties: Any) -> Device:
    """A vfio-user device on the socket `path`; properties are QEMU's (id, bus, bootindex, ...)."""
    return {
        "driver": "vfio-user-pci",
        "socket": {"type": "unix", "path": str(path)},
        **properties,
    }


class Guest(Child):
    """A q35 machine with memory that can be shared with a device process.

    firmware "direct" loads `kernel` (a release of find_images().kernels, the newest by default)
    and the initramfs; "bios" and "uefi" leave it to the firmware to boot from the devices.
    `slots` adds empty PCI Express ports named slot0, slot1, ... that plug() fills.
    """

    def __init__(
        self,
        devices: Sequence[Device] = (),
        *,
        firmware: Firmware = "direct",
        kernel: str | None = None,
        cpus: int = 1,
        memory: str = "512M",
        slots: int = 0,
        append: str = "",
        extra: Sequence[str] = (),
    ) -> None:
        qemu, images = find_qemu(), find_images()
        if qemu is None or images is None:
            raise GuestError(available())
        if firmware == "uefi" and qemu.ovmf is None:
            raise GuestError("no UEFI firmware beside QEMU: install ovmf")
        super().__init__("guest")
        self.kernel_release = ""
        self._arguments = [
            *self._machine(qemu, images, cpus, memory),
            *self._boot(qemu, images, firmware, kernel, append),
            *extra,
        ]
        ports = [f"pcie-root-port,id=slot{n},chassis={n + 1}" for n in range(slots)]
        for device in (*ports, *map(json.dumps, devices)):
            self._arguments += ["-device", device]
        self._agent: Agent | None = None
        self._qmp: Qmp | None = None

    def _machine(self, qemu: Qemu, images: Images, cpus: int, memory: str) -> list[str]:
        accelerator = images.accelerator
        return [
            str(qemu.program), "-nodefaults", "-no-user-config", "-display", "none",
            "-machine", f"q35,memory-backend=mem,accel={accelerator}",
            "-object", f"memory-backend-memfd,id=mem,size={memory},share=on",
            "-m", memory, "-smp", str(cpus), "-cpu", "host" if accelerator == "kvm" else "max",
            "-serial", f"file:{self.folder}/console",
            "-qmp", f"unix:{self.folder}/qmp,server=on,wait=off",
            "-chardev", f"socket,id=agent,path={self.folder}/agent,server=on,wait=off",
            "-device", "virtio-serial-pci",
            "-device", "virtserialport,chardev=agent,name=shadowbell.agent",
        ]  # fmt: skip

    def _boot(
        self, qemu: Qemu, images: Images, firmware: Firmware, kernel: str | None, append: str
    ) -> list[str]:
        if firmware == "direct":
            kernels = images.kernels
            path = kernels[kernel] if kernel else list(kernels.values())[-1]
            command_line = f"console=ttyS0 quiet {append}".strip()
            return ["-kernel", str(path), "-initrd", str(images.initramfs), "-append", command_line]
        if firmware == "bios" or qemu.ovmf is None:
            return []
        code, variables = qemu.ovmf
        own = self.folder / "variables.fd"
        shutil.copy(variables, own)
        return [
            "-drive", f"if=pflash,format=raw,readonly=on,file={code}",
            "-drive", f"if=pflash,format=raw,file={own}",
        ]  # fmt: skip

    @property
    def qmp(self) -> Qmp:
        if self._qmp is None:
            raise GuestError("the guest isn't running")
        return self._qmp

    @property
    def console(self) -> str:
        """All the guest wrote to its serial console so far."""
        path = self.folder / "console"
        return path.read_bytes().decode(errors="replace") if path.exists() else ""

    def start(self) -> None:
        """Boots and waits until the guest takes commands."""
        self._launch(self._arguments)
        self._qmp = Qmp(self._connect("qmp"))
        self._agent = Agent(self._connect("agent"))
        self.wait_boot()

    def wait_boot(self, *, timeout: float = BOOT_TIMEOUT) -> None:
        """Waits until the guest, booting for the first time or again, takes commands."""
        try:
            self.kernel_release = self._channel().wait_hello(timeout)
        except AgentError as error:
            raise self._failure(f"boot: {error}") from error

    def run(self, script: str, timeout: float = 60) -> tuple[int, str]:
        """Runs a shell script in the guest: its exit code, its output. GuestError if it can't."""
        try:
            return self._channel().run(script, timeout)
        except AgentError as error:
            raise self._failure(f"{error}: {script!r}") from error

    def check(self, script: str, timeout: float = 60) -> str:
        """Like run(), but anything but exit code 0 is a GuestError."""
        code, output = self.run(script, timeout)
        if code != 0:
            raise GuestError(f"exit code {code}: {script!r}\n{output}")
        return output

    def reboot(self, *, timeout: float = BOOT_TIMEOUT) -> None:
        """Restarts the guest from inside, as its own `reboot` does, and waits for it."""
        self.run("(sleep 0.2; reboot -f) &")
        self.wait_boot(timeout=timeout)

    def plug(self, device: Device) -> None:
        """Hot-plugs a device; "bus" names an empty slot, "id" is what unplug() takes."""
        self.qmp.execute("device_add", **device)

    def unplug(self, name: str, *, timeout: float = 60) -> None:
        """Asks the guest to let a device go and waits until QEMU has removed it."""
        self.qmp.drop_events()
        self.qmp.execute("device_del", id=name)
        try:
            self.qmp.wait_event("DEVICE_DELETED", timeout, device=name)
        except QmpError as error:
            raise self._failure(f"unplug {name}: {error}") from error

    def close(self) -> None:
        """Ends QEMU, gently first, and removes its files."""
        super().close()
        for channel in (self._agent, self._qmp):
            if channel is not None:
                channel.close()
        self._agent = self._qmp = None

    def _channel(self) -> Agent:
        if self._agent is None:
            raise GuestError("the guest isn't running")
        return self._agent

    def _connect(self, name: str) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        path = str(self.folder / name)
        if self._wait_until(lambda: connection.connect_ex(path) == 0, CONNECT_TIMEOUT):
            return connection
        connection.close()
        raise self._failure("QEMU did not start")

    def _failure(self, what: str) -> GuestError:
        code, said = self.exit_code, self.log
        parts = [what]
        if code is not None:
            parts.append(f"QEMU ended with {code}")
        for name, text in (("QEMU", said), ("console", self.console)):
            if tail := "\n".join(text.strip().splitlines()[-15:]):
                parts.append(f"--- {name}:\n{tail}")
        return GuestError("\n".join(parts))
