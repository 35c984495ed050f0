"""Encryption at rest of the volume that holds a folder, as far as Linux shows.

Found are dm-crypt (LUKS), also below LVM and RAID; directories encrypted by the file system (fscrypt); and encrypting
file systems. Encryption below the kernel (a self-encrypting disk, a cloud provider's) and of ZFS or a network is not
visible.
"""

import fcntl
import os
import re
from pathlib import Path
from typing import NamedTuple

_ENCRYPTING = {"ecryptfs", "fuse.gocryptfs", "fuse.encfs", "fuse.cryfs", "fuse.securefs"}
# ioctl and flag of linux/fs.h.
_FS_IOC_GETFLAGS = 0x80086601
_FS_ENCRYPT_FL = 0x800


class VolumeEncryption(NamedTuple):
    """Encryption of a volume: true, false, or None if it cannot be known; and a description of it."""

    is_encrypted: bool | None
    description: str


class _Mount(NamedTuple):
    device: str
    point: Path
    kind: str
    source: str


def volume_encryption(folder: Path, system: Path = Path("/")) -> VolumeEncryption:
    """Returns the encryption at rest of the volume of a folder; `system` is the root of /proc and /sys."""
    mount = _mount_of(folder.resolve(), system)
    if mount is None:
        return VolumeEncryption(None, "this system does not show its mounts")
    volume = f"{mount.source} ({mount.kind}) on {mount.point}"
    if mount.kind in _ENCRYPTING:
        return VolumeEncryption(True, volume)
    if _has_encryption_flag(folder):
        return VolumeEncryption(True, f"fscrypt, {volume}")
    device = _block_device(mount, system)
    if device is None:
        return VolumeEncryption(None, f"{volume} is no block device")
    if _is_crypt_device(device):
        return VolumeEncryption(True, f"dm-crypt, {volume}")
    return VolumeEncryption(False, volume)


def _mount_of(folder: Path, system: Path) -> _Mount | None:
    """Returns the mount of a folder: the longest mount point above it, of several the last."""
    try:
        lines = (system / "proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    mounts = []
    for line in lines:
        head, _, tail = line.partition(" - ")
        fields, (kind, source, *_) = head.split(), tail.split()
        point = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4]))
        if folder.is_relative_to(point):
            mounts.append(_Mount(fields[2], point, kind, source))
    # max returns the first of equals.
    return max(reversed(mounts), key=lambda mount: len(mount.point.parts), default=None)


def _block_device(mount: _Mount, system: Path) -> Path | None:
    """Returns the folder of a mount's block device in /sys, None if it has none."""
    numbers = [mount.device]
    # The number of a btrfs mount is not that of a device.
    if (source := Path(mount.source)).is_block_device():
        status = source.stat()
        numbers.append(f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}")
    folders = (system / "sys/dev/block" / number for number in numbers)
    return next((folder for folder in folders if folder.exists()), None)


def _is_crypt_device(device: Path) -> bool:
    """Returns True if a device, or all devices below it, are of dm-crypt."""
    uuid = device / "dm/uuid"
    if uuid.is_file() and uuid.read_text(encoding="ascii", errors="replace").startswith("CRYPT-"):
        return True
    below = [path.resolve() for path in sorted((device / "slaves").glob("*"))]
    return bool(below) and all(map(_is_crypt_device, below))


def _has_encryption_flag(folder: Path) -> bool:
    """Returns True if the file system marks a folder as encrypted."""
    flags = bytearray(8)
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        fcntl.ioctl(handle, _FS_IOC_GETFLAGS, flags)
    except OSError:  # a file system without flags
        return False
    finally:
        os.close(handle)
    return bool(int.from_bytes(flags[:4], "little") & _FS_ENCRYPT_FL)
