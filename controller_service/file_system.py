"""On which file system a path is, as far as it matters: whether other machines write it too."""

from __future__ import annotations

from pathlib import Path

import psutil

_NETWORK = frozenset({
    "9p", "afpfs", "afs", "beegfs", "ceph", "cifs", "coda", "gfs2", "gpfs", "lustre", "ncpfs", "nfs", "nfs3",
    "nfs4", "ocfs2", "orangefs", "panfs", "pvfs2", "smb", "smb2", "smb3", "smbfs", "vboxsf", "vmhgfs", "webdav",
})  # fmt: skip
_LOCAL_FUSE = frozenset({"fuse.fuse-overlayfs", "fuse.ntfs-3g", "fuse.lxcfs"})


def network_file_system(path: Path) -> str:
    """Return the kind of network file system that `path` is on, such as `nfs4`; empty if it is a local one."""
    resolved = path.resolve()
    kind, depth = "", -1
    for partition in psutil.disk_partitions(all=True):
        mount = Path(partition.mountpoint)
        if len(mount.parts) >= depth and resolved.is_relative_to(
            mount
        ):  # of equals, the last covers the others
            kind, depth = partition.fstype.lower(), len(mount.parts)
    return kind if is_network(kind) else ""


def is_network(kind: str) -> bool:
    """Return whether a kind of file system is one of the network, as most that run in user space are."""
    return kind in _NETWORK or (kind.startswith("fuse.") and kind not in _LOCAL_FUSE)
