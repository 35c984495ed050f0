"""Encryption at rest, read from copies of /proc and /sys as Linux writes them, and on this machine."""

import fcntl
import os
from pathlib import Path

import pytest

from facelt.gallery.volume import _mount_of, volume_encryption

LUKS = "CRYPT-LUKS2-0f3c9a7e5d4b4c0e8f6a1b2c3d4e5f60-home\n"
LVM = "LVM-Xo3vJ2b6hJq1\n"


class System:
    """A folder with proc/self/mountinfo and sys/dev/block."""

    def __init__(self, root):
        self.root, self.lines = root, []
        (root / "proc/self").mkdir(parents=True)

    def mount(self, point, device="8:1", kind="ext4", source="/dev/absent"):
        escaped = str(point).replace(" ", r"\040")
        self.lines.append(f"36 25 {device} / {escaped} rw,relatime shared:1 - {kind} {source} rw")
        (self.root / "proc/self/mountinfo").write_text("\n".join(self.lines) + "\n")

    def device(self, number, uuid=None, below=()):
        folder = self.root / "sys/devices" / number
        (folder / "slaves").mkdir(parents=True)
        if uuid:
            (folder / "dm").mkdir()
            (folder / "dm/uuid").write_text(uuid)
        for other in below:
            (folder / "slaves" / other).symlink_to(self.root / "sys/devices" / other)
        (self.root / "sys/dev/block").mkdir(parents=True, exist_ok=True)
        (self.root / "sys/dev/block" / number).symlink_to(folder)


@pytest.fixture
def system(tmp_path):
    made = System(tmp_path / "system")
    made.device("8:1")
    made.device("8:2")
    made.device("253:0", LUKS, ["8:1"])
    made.device("253:1", LVM, ["253:0"])
    made.device("253:2", LVM, ["8:2"])
    made.device("9:0", None, ["253:0", "8:2"])
    return made


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "my data" / "gallery").mkdir(parents=True)
    return tmp_path / "my data" / "gallery"


@pytest.mark.parametrize(
    ("device", "kind", "is_encrypted", "description"),
    [
        ("8:1", "ext4", False, "/dev/absent (ext4) on /"),
        ("253:0", "ext4", True, "dm-crypt"),
        ("253:1", "xfs", True, "dm-crypt"),
        ("253:2", "xfs", False, "(xfs) on /"),
        ("9:0", "ext4", False, "(ext4) on /"),
        ("0:50", "fuse.gocryptfs", True, "gocryptfs"),
        ("0:51", "nfs4", None, "is no block device"),
        ("0:52", "tmpfs", None, "is no block device"),
    ],
)
def test_the_volume_decides(system, folder, device, kind, is_encrypted, description):
    system.mount("/", device, kind)
    encryption = volume_encryption(folder, system.root)
    assert encryption.is_encrypted is is_encrypted
    assert description in encryption.description


def test_the_innermost_and_last_mount_holds_the_folder(system, folder):
    system.mount("/", "253:0")
    assert volume_encryption(folder, system.root).is_encrypted
    system.mount(folder.parent, "8:1")
    system.mount(folder.parent.with_name("my"), "253:0")
    encryption = volume_encryption(folder, system.root)
    assert (encryption.is_encrypted, encryption.description) == (False, f"/dev/absent (ext4) on {folder.parent}")
    system.mount(folder.parent, "253:1")
    assert volume_encryption(folder, system.root).is_encrypted


def test_a_directory_that_the_file_system_encrypts(system, folder, monkeypatch):
    system.mount("/", "8:1")

    def flags(handle, request, buffer):
        assert os.path.samestat(os.fstat(handle), folder.stat())
        buffer[:4] = (0x80000 | 0x800).to_bytes(4, "little")

    monkeypatch.setattr(fcntl, "ioctl", flags)
    assert volume_encryption(folder, system.root).description.startswith("fscrypt, ")


def test_a_system_that_does_not_show_its_mounts(tmp_path, folder):
    assert volume_encryption(folder, tmp_path / "absent").is_encrypted is None


def test_this_machine(folder):
    """The mount of its path is that of the folder by its device number, but for btrfs."""
    if not Path("/proc/self/mountinfo").exists():
        pytest.skip("no /proc")
    mount = _mount_of(folder.resolve(), Path("/"))
    device = folder.stat().st_dev
    assert mount.kind == "btrfs" or mount.device == f"{os.major(device)}:{os.minor(device)}"
    assert str(mount.point) in volume_encryption(folder).description
