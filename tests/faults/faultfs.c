/* Disks that fail on purpose: preloaded into a process, it makes calls on chosen files fail.
 *
 * The file named by FAULTFS_CONTROL is read again at every call; no file, or an empty one, means no faults:
 *
 *     mode=EIO_WRITE     writes fail with EIO
 *     mode=TORN_WRITE    half of a write arrives, then EIO
 *     mode=ENOSPC        writes that make a file longer, or all when path= names it, fail with ENOSPC
 *     mode=EROFS         writes, and opening for writing, fail with EROFS
 *     mode=EIO_FSYNC     fsync and fdatasync fail with EIO
 *     mode=DELAY_FSYNC   fsync and fdatasync take ms= milliseconds longer
 *     path=TEXT          only files whose path contains TEXT, or ends with it when a $ stands behind it
 *     ms=NUMBER
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum mode { NONE, EIO_WRITE, TORN_WRITE, NO_SPACE, READ_ONLY, EIO_FSYNC, DELAY_FSYNC };

struct fault {
    enum mode mode;
    long ms;
    char path[256];
};

static const struct {
    const char *name;
    enum mode mode;
} MODES[] = {
    {"EIO_WRITE", EIO_WRITE}, {"TORN_WRITE", TORN_WRITE}, {"ENOSPC", NO_SPACE},
    {"EROFS", READ_ONLY},     {"EIO_FSYNC", EIO_FSYNC},   {"DELAY_FSYNC", DELAY_FSYNC},
};

/* The call that this library stands before. */
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static struct fault read_control(void)
{
    struct fault fault = {NONE, 0, ""};
    char text[1024], *line, *rest = NULL;
    const char *name = getenv("FAULTFS_CONTROL");
    ssize_t n;
    int fd;

    if (!name)
        return fault;
    fd = (int)syscall(SYS_openat, AT_FDCWD, name, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return fault;
    n = read(fd, text, sizeof text - 1);
    syscall(SYS_close, fd);
    text[n > 0 ? n : 0] = 0;
    for (line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        if (!strncmp(line, "mode=", 5)) {
            for (size_t i = 0; i < sizeof MODES / sizeof *MODES; i++)
                if (!strcmp(line + 5, MODES[i].name))
                    fault.mode = MODES[i].mode;
        } else if (!strncmp(line, "ms=", 3)) {
            fault.ms = atol(line + 3);
        } else if (!strncmp(line, "path=", 5)) {
            snprintf(fault.path, sizeof fault.path, "%s", line + 5);
        }
    }
    return fault;
}

static int concerns_path(const struct fault *fault, const char *path)
{
    size_t n = strlen(fault->path), length = strlen(path);

    if (!n)
        return 1;
    if (fault->path[n - 1] == '$') /* the path's end */
        return length >= n - 1 && !strncmp(path + length - (n - 1), fault->path, n - 1);
    return strstr(path, fault->path) != NULL;
}

/* Regular files only: sockets and pipes of the process go on working. */
static int concerns(const struct fault *fault, int fd)
{
    char link[64], path[PATH_MAX];
    ssize_t n;

    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    n = readlink(link, path, sizeof path - 1);
    if (n <= 0 || path[0] != '/')
        return 0;
    path[n] = 0;
    if (!strncmp(path, "/dev/", 5))
        return 0;
    return concerns_path(fault, path);
}

/* The errno that a write meets, or 0; *torn says how many bytes arrive before it. */
static int write_fault(int fd, size_t length, size_t *torn)
{
    struct fault fault = read_control();

    *torn = 0;
    if (fault.mode == NONE || fault.mode == EIO_FSYNC || fault.mode == DELAY_FSYNC || !concerns(&fault, fd))
        return 0;
    if (fault.mode == TORN_WRITE)
        *torn = length / 2;
    if (fault.mode == NO_SPACE)
        return ENOSPC;
    return fault.mode == READ_ONLY ? EROFS : EIO;
}

static int sync_fault(int fd)
{
    struct fault fault = read_control();

    if ((fault.mode != EIO_FSYNC && fault.mode != DELAY_FSYNC) || !concerns(&fault, fd))
        return 0;
    if (fault.mode == DELAY_FSYNC) {
        struct timespec pause = {fault.ms / 1000, fault.ms % 1000 * 1000000};
        nanosleep(&pause, NULL);
        return 0;
    }
    return EIO;
}

static int open_fault(const char *path, int flags)
{
    struct fault fault;

    if ((flags & O_ACCMODE) == O_RDONLY)
        return 0;
    fault = read_control();
    return fault.mode == READ_ONLY && concerns_path(&fault, path) ? EROFS : 0;
}

#define FAIL(error) do { errno = (error); return -1; } while (0)

ssize_t write(int fd, const void *data, size_t length)
{
    size_t torn;
    int error = write_fault(fd, length, &torn);

    if (!error)
        return REAL(write)(fd, data, length);
    if (torn)
        REAL(write)(fd, data, torn);
    FAIL(error);
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t at)
{
    size_t torn;
    int error = write_fault(fd, length, &torn);

    if (!error)
        return REAL(pwrite)(fd, data, length, at);
    if (torn)
        REAL(pwrite)(fd, data, torn, at);
    FAIL(error);
}

ssize_t pwrite64(int fd, const void *data, size_t length, off64_t at)
{
    size_t torn;
    int error = write_fault(fd, length, &torn);

    if (!error)
        return REAL(pwrite64)(fd, data, length, at);
    if (torn)
        REAL(pwrite64)(fd, data, torn, at);
    FAIL(error);
}

ssize_t writev(int fd, const struct iovec *parts, int n)
{
    size_t torn;
    int error = write_fault(fd, 0, &torn);

    if (error)
        FAIL(error);
    return REAL(writev)(fd, parts, n);
}

int fsync(int fd)
{
    int error = sync_fault(fd);

    if (error)
        FAIL(error);
    return REAL(fsync)(fd);
}

int fdatasync(int fd)
{
    int error = sync_fault(fd);

    if (error)
        FAIL(error);
    return REAL(fdatasync)(fd);
}

#define OPEN_MODE(flags, last)                                                                                   \
    mode_t mode = 0;                                                                                             \
    if ((flags) & (O_CREAT | O_TMPFILE)) {                                                                       \
        va_list rest;                                                                                            \
        va_start(rest, last);                                                                                    \
        mode = va_arg(rest, mode_t);                                                                             \
        va_end(rest);                                                                                            \
    }

int open(const char *path, int flags, ...)
{
    OPEN_MODE(flags, flags)
    int error = open_fault(path, flags);

    if (error)
        FAIL(error);
    return REAL(open)(path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    OPEN_MODE(flags, flags)
    int error = open_fault(path, flags);

    if (error)
        FAIL(error);
    return REAL(open64)(path, flags, mode);
}

int openat(int folder, const char *path, int flags, ...)
{
    OPEN_MODE(flags, flags)
    int error = open_fault(path, flags);

    if (error)
        FAIL(error);
    return REAL(openat)(folder, path, flags, mode);
}

int openat64(int folder, const char *path, int flags, ...)
{
    OPEN_MODE(flags, flags)
    int error = open_fault(path, flags);

    if (error)
        FAIL(error);
    return REAL(openat64)(folder, path, flags, mode);
}
