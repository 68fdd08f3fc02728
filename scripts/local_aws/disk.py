"""The empty disk of a container (moto gives jobs to Docker, which is not at hand on every machine).

On AWS a job sees its image and an empty disk. Here the image is this machine's own: a job sees, read only,
the system's folders, Python with all that it imports from, the image's files and the folders of PYTHONPATH.
All else is an empty disk. This needs a mount namespace of Linux, from root or by way of a user namespace; the
job's root folder is then one with the visible ones mounted into it. No process is put between: the job keeps
the process id it began with. Where no mount namespace can be had (macOS, some containers), a job has an empty
working folder, home and TMPDIR, and sees the rest. `isolation()` says which of the two holds; so do the log
and GET /_local/server.

This file is also the program that gives a job its disk and becomes it:

    disk.py ROOT VISIBLE:... SHARED COMMAND [ARG...]"""
import contextlib
import ctypes
import functools
import os
import sys

SYSTEM = ('/bin', '/sbin', '/lib', '/lib32', '/lib64', '/libx32', '/usr', '/etc', '/dev', '/proc', '/sys')
# What a container may write to; the first is its home and working folder.
WRITABLE = ('/home/rios', '/tmp', '/var/tmp')
# What a container sees as /sys/fs/cgroup: its memory.events is how it learns of the kernel's OOM killer.
CGROUP = '/.cgroup'
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18


def _call(name, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f'{name}: {os.strerror(number)}')


def _mount(source, target, flags):
    _call('mount', source and source.encode(), target.encode(), None, ctypes.c_ulong(flags), None)


def _own_mounts():
    """A mount namespace of this process's own."""
    user, group = os.geteuid(), os.getegid()
    try:
        _call('unshare', CLONE_NEWNS)
    except OSError:
        _call('unshare', CLONE_NEWNS | CLONE_NEWUSER)
        for name, text in (('setgroups', 'deny'), ('uid_map', f'{user} {user} 1'),
                           ('gid_map', f'{group} {group} 1')):
            with open('/proc/self/' + name, 'w', encoding='ascii') as file:
                file.write(text)
    _mount(None, '/', MS_REC | MS_PRIVATE)


def _show(root, path, writable=False):
    """Mount a file or folder at its own place below the root."""
    target = root + path
    if os.path.islink(path) and os.path.dirname(path) == '/':        # /bin is often a link to usr/bin
        os.symlink(os.readlink(path), target)
        return
    if os.path.ismount(target) or os.path.islink(target):
        return
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        open(target, 'ab').close()
    _mount(path, target, MS_BIND | MS_REC)
    if not writable and path not in ('/dev', '/proc', '/sys'):
        # It fails in a user namespace, of what has more such flags already.
        with contextlib.suppress(PermissionError):
            _mount(None, target, MS_REMOUNT | MS_BIND | MS_RDONLY)


def enter(root, visible, shared):
    """Make that folder the root of all that this process sees."""
    _own_mounts()
    # A container engine in a job (scripts/dev/test-image.sh) asks for this of its /.
    _mount(root, root, MS_BIND)
    for path in (*WRITABLE, CGROUP):
        os.makedirs(root + path, exist_ok=True)
    # A folder first, then what is inside it.
    for path in sorted({os.path.abspath(path) for path in [*SYSTEM, *visible]}):
        if os.path.exists(path):
            _show(root, path)
    if shared:
        _show(root, os.path.abspath(shared), True)
    _mount(root + CGROUP, root + '/sys/fs/cgroup', MS_BIND)
    os.chroot(root)
    os.chdir(WRITABLE[0])


@functools.lru_cache(None)
def isolation():
    """'namespace' where jobs see an empty disk, 'folders' where they only have empty folders of their own."""
    import subprocess       # each job runs this file, and does without
    import tempfile
    with tempfile.TemporaryDirectory() as root:
        tried = subprocess.run(_launcher(root, []) + ['/bin/true'], capture_output=True)
    return 'folders' if tried.returncode else 'namespace'


def _launcher(root, visible):
    shared = os.environ.get('RIOS_AWSBATCH_LOCAL_SHARED', '')
    return [sys.executable, '-I', '-S', os.path.abspath(__file__), root, os.pathsep.join(visible), shared]


def command(folder, image, environment):
    """The words that come before the command of a job with that folder and image to give it its disk.

    The job's environment gets HOME and TMPDIR as the job sees them.
    """
    seen = '' if isolation() == 'namespace' else folder
    environment.update({'HOME': seen + WRITABLE[0], 'TMPDIR': seen + WRITABLE[1], **environment})
    for path in (*WRITABLE, CGROUP):
        os.makedirs(folder + path)
    note_killed(folder, 0)
    if seen:
        return []
    # What Python imports from, but for the folder of this program itself.
    visible = [sys.prefix, sys.base_prefix, sys.exec_prefix, *sys.path[1:], image]
    for name in ('PYTHONPATH', 'LD_LIBRARY_PATH', 'GDAL_DATA', 'PROJ_LIB', 'PROJ_DATA'):
        visible += environment.get(name, '').split(os.pathsep)
    visible = [path for path in visible if path and os.path.exists(path)]
    return _launcher(folder, [*map(os.path.abspath, visible), *map(os.path.realpath, visible)])


def note_killed(folder, count):
    """How many processes of a container the kernel has ended for want of memory."""
    with open(folder + CGROUP + '/memory.events', 'w', encoding='ascii') as file:
        file.write(f'low 0\nhigh 0\nmax {count}\noom {count}\noom_kill {count}\n')


def main(root, visible, shared, *words):
    """Enter the container's disk and become the command."""
    enter(root, filter(None, visible.split(os.pathsep)), shared)
    os.execv(words[0], words)


if __name__ == '__main__':
    main(*sys.argv[1:])
