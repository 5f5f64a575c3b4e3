/* Makes every fsync and fdatasync of one process take longer, as on a slower disk.
 *
 *   gcc -shared -fPIC -O2 -o libfsync_delay.so fsync_delay.c -ldl
 *   FSYNC_DELAY_MS=10 LD_PRELOAD=./libfsync_delay.so program ...
 *
 * The real call is made first, so nothing is less durable than before; then the thread sleeps.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <time.h>

typedef int sync_fn(int fd);

static void sleep_for_the_delay(void)
{
    static long delay_us = -1;
    if (delay_us < 0) {
        const char *text = getenv("FSYNC_DELAY_MS");
        delay_us = text ? (long)(atof(text) * 1000) : 0;
    }
    struct timespec left = {delay_us / 1000000, delay_us % 1000000 * 1000};
    while (nanosleep(&left, &left) && errno == EINTR) {
    }
}

static int delayed(const char *name, int fd)
{
    sync_fn *real;
    *(void **)&real = dlsym(RTLD_NEXT, name);
    int result = real(fd);
    int saved = errno;
    sleep_for_the_delay();
    errno = saved;
    return result;
}

int fsync(int fd)
{
    return delayed("fsync", fd);
}

int fdatasync(int fd)
{
    return delayed("fdatasync", fd);
}
