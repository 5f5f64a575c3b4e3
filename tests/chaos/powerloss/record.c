/* Writes down what a process does to the files below one folder, so that a test can replay a power loss.
 *
 * Preloaded; RECORD_FOLDER names the folder, RECORD_LOG the file for the record. Each entry is a header (below)
 * followed by the path relative to the folder and by the data. A write stands behind the call, a sync has one entry
 * before and one behind it: what was written down before the first is on disk once the second stands.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

struct header {
    char kind; /* W write, T truncate, B and E sync begins and ends, C create, U unlink, R rename (data: new path) */
    uint32_t token, path_length, data_length;
    uint64_t at;
} __attribute__((packed));

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint32_t tokens;

/* The path below the folder, or NULL. */
static const char *below(const char *path)
{
    const char *folder = getenv("RECORD_FOLDER");
    size_t n = folder ? strlen(folder) : 0;

    if (!n || strncmp(path, folder, n) || (path[n] && path[n] != '/'))
        return NULL;
    return path[n] ? path + n + 1 : path + n;
}

static void put(char kind, uint32_t token, const char *path, uint64_t at, const void *data, size_t length)
{
    struct header header = {kind, token, (uint32_t)strlen(path), (uint32_t)length, at};
    struct iovec parts[] = {{&header, sizeof header}, {(void *)path, strlen(path)}, {(void *)data, length}};
    int fd = (int)syscall(SYS_openat, AT_FDCWD, getenv("RECORD_LOG"), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);

    pthread_mutex_lock(&lock);
    syscall(SYS_writev, fd, parts, 3);
    pthread_mutex_unlock(&lock);
    syscall(SYS_close, fd);
}

static const char *path_of(int fd, char *buffer)
{
    char link[64];
    ssize_t n;

    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    n = readlink(link, buffer, PATH_MAX - 1);
    if (n <= 0)
        return NULL;
    buffer[n] = 0;
    return below(buffer);
}

static void wrote(int fd, const void *data, ssize_t length, off64_t at)
{
    char buffer[PATH_MAX];
    const char *path = path_of(fd, buffer);

    if (path && length > 0)
        put('W', 0, path, (uint64_t)at, data, (size_t)length);
}

ssize_t write(int fd, const void *data, size_t length)
{
    off64_t at = lseek64(fd, 0, SEEK_CUR);
    ssize_t n = REAL(write)(fd, data, length);

    wrote(fd, data, n, at);
    return n;
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t at)
{
    ssize_t n = REAL(pwrite)(fd, data, length, at);

    wrote(fd, data, n, at);
    return n;
}

ssize_t pwrite64(int fd, const void *data, size_t length, off64_t at)
{
    ssize_t n = REAL(pwrite64)(fd, data, length, at);

    wrote(fd, data, n, at);
    return n;
}

static int synced(int fd, int (*call)(int))
{
    char buffer[PATH_MAX];
    const char *path = path_of(fd, buffer);
    uint32_t token = __atomic_add_fetch(&tokens, 1, __ATOMIC_SEQ_CST);
    int result;

    if (path)
        put('B', token, path, 0, "", 0);
    result = call(fd);
    if (path && !result)
        put('E', token, path, 0, "", 0);
    return result;
}

int fsync(int fd) { return synced(fd, REAL(fsync)); }

int fdatasync(int fd) { return synced(fd, REAL(fdatasync)); }

static int cut(int fd, off64_t size, int result)
{
    char buffer[PATH_MAX];
    const char *path = path_of(fd, buffer);

    if (path && !result)
        put('T', 0, path, (uint64_t)size, "", 0);
    return result;
}

int ftruncate(int fd, off_t size) { return cut(fd, size, REAL(ftruncate)(fd, size)); }

int ftruncate64(int fd, off64_t size) { return cut(fd, size, REAL(ftruncate64)(fd, size)); }

int unlink(const char *path)
{
    int result = REAL(unlink)(path);

    if (below(path) && !result)
        put('U', 0, below(path), 0, "", 0);
    return result;
}

int rename(const char *from, const char *to)
{
    int result = REAL(rename)(from, to);

    if (below(from) && below(to) && !result)
        put('R', 0, below(from), 0, below(to), strlen(below(to)));
    return result;
}

static void created(const char *path, int flags, int existed, int fd)
{
    if (fd >= 0 && (flags & O_CREAT) && !existed && path[0] == '/' && below(path))
        put('C', 0, below(path), 0, "", 0);
}

#define OPEN_MODE(flags)                                                                                         \
    mode_t mode = 0;                                                                                             \
    if ((flags) & (O_CREAT | O_TMPFILE)) {                                                                       \
        va_list rest;                                                                                            \
        va_start(rest, flags);                                                                                   \
        mode = va_arg(rest, mode_t);                                                                             \
        va_end(rest);                                                                                            \
    }

int open(const char *path, int flags, ...)
{
    OPEN_MODE(flags)
    int existed = access(path, F_OK) == 0, fd = REAL(open)(path, flags, mode);

    created(path, flags, existed, fd);
    return fd;
}

int open64(const char *path, int flags, ...)
{
    OPEN_MODE(flags)
    int existed = access(path, F_OK) == 0, fd = REAL(open64)(path, flags, mode);

    created(path, flags, existed, fd);
    return fd;
}
