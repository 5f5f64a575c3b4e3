/* A libnvidia-ml.so.1 whose GPUs stand in a text file, read anew at every call, so that a test changes them while a
 * program runs. The file is named by FAKE_NVML; without it there is no GPU. Lines:
 *
 *   driver 580.42            version of the driver
 *   gone 9                   every call answers this code of NVML's, also those that open it
 *   fail FUNCTION CODE       this function answers the code
 *   hang FUNCTION            this function returns only when the line is gone
 *   gpu uuid=GPU-1|name=…|total=MiB|used=MiB|reserved=MiB|util=%|temp=C|power=mW|pci=…|lost=CODE|quiet=1|mig=1|procs=PID:MiB,…
 *   mig gpu=GPU-1|uuid=MIG-1|name=…|total=MiB|used=MiB|reserved=MiB
 *
 * A value that is left out is answered with "not supported"; procs with ":-" as "not available".
 * Built with -DOLD it has the functions of an old driver only; with -DBARE it lacks even those that list GPUs. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long long u64;
enum { OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7 };
enum { MOST = 16, PROCS = 16 };

typedef struct {
    char uuid[96], parent[96], name[96], pci[32], procs[256];
    long total, used, reserved, util, temp, power; /* -1: not told */
    int lost, mig, quiet, instance;
} Gpu;
typedef struct {
    Gpu gpus[MOST];
    int count, gone;
    char driver[80];
} World;
typedef struct { u64 total, free, used; } Memory;
typedef struct { unsigned version; u64 total, reserved, free, used; } MemoryV2;
typedef struct { unsigned gpu, memory; } Rates;
typedef struct { int version; unsigned sensor; int temperature; } Temperature;
typedef struct { unsigned pid; u64 used; unsigned gpu_instance, compute_instance; } Process;
typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } Pci;

static int opened;
/* A handle is the place of a UUID in this table: it stays when the GPU vanishes. */
static char handles[64][96];

static void put(Gpu *gpu, const char *key, const char *value) {
    long number = atol(value);
    if (!strcmp(key, "uuid")) snprintf(gpu->uuid, sizeof gpu->uuid, "%.90s", value);
    else if (!strcmp(key, "gpu")) snprintf(gpu->parent, sizeof gpu->parent, "%.90s", value);
    else if (!strcmp(key, "name")) snprintf(gpu->name, sizeof gpu->name, "%.90s", value);
    else if (!strcmp(key, "pci")) snprintf(gpu->pci, sizeof gpu->pci, "%.30s", value);
    else if (!strcmp(key, "procs")) snprintf(gpu->procs, sizeof gpu->procs, "%.250s", value);
    else if (!strcmp(key, "total")) gpu->total = number;
    else if (!strcmp(key, "used")) gpu->used = number;
    else if (!strcmp(key, "reserved")) gpu->reserved = number;
    else if (!strcmp(key, "util")) gpu->util = number;
    else if (!strcmp(key, "temp")) gpu->temp = number;
    else if (!strcmp(key, "power")) gpu->power = number;
    else if (!strcmp(key, "lost")) gpu->lost = (int)number;
    else if (!strcmp(key, "mig")) gpu->mig = (int)number;
    else if (!strcmp(key, "quiet")) gpu->quiet = (int)number;
}

static void parse_gpu(World *world, char *fields, int instance) {
    if (world->count == MOST) return;
    Gpu *gpu = &world->gpus[world->count++];
    memset(gpu, 0, sizeof *gpu);
    gpu->total = gpu->used = gpu->reserved = gpu->util = gpu->temp = gpu->power = -1;
    gpu->instance = instance;
    char *rest = fields, *field;
    while ((field = strsep(&rest, "|")) != NULL) {
        char *value = strchr(field, '=');
        if (value == NULL) continue;
        *value++ = 0;
        put(gpu, field, value);
    }
}

/* Reads the file; answers what a function is to do: 1 hang, else 0 with its code in `code`. */
static int look(World *world, const char *function, int *code) {
    memset(world, 0, sizeof *world);
    snprintf(world->driver, sizeof world->driver, "580.42");
    *code = OK;
    int hang = 0;
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (file == NULL) return 0;
    char line[1024], word[80];
    int number;
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        if (!strncmp(line, "gpu ", 4)) parse_gpu(world, line + 4, 0);
        else if (!strncmp(line, "mig ", 4)) parse_gpu(world, line + 4, 1);
        else if (sscanf(line, "driver %79s", word) == 1) snprintf(world->driver, sizeof world->driver, "%s", word);
        else if (sscanf(line, "gone %d", &number) == 1) world->gone = number;
        else if (sscanf(line, "fail %79s %d", word, &number) == 2 && !strcmp(word, function)) *code = number;
        else if (sscanf(line, "hang %79s", word) == 1 && !strcmp(word, function)) hang = 1;
    }
    fclose(file);
    if (world->gone) *code = world->gone;
    return hang;
}

static int enter(World *world, const char *function) {
    int code;
    while (look(world, function, &code)) usleep(5000);
    return code;
}

/* The GPU behind a handle, for a function. */
static int at(void *handle, const char *function, World *world, Gpu **gpu) {
    int code = enter(world, function);
    if (code) return code;
    if (!opened) return UNINITIALIZED;
    for (int i = 0; i < world->count; i++)
        if (handle != NULL && !strcmp((char *)handle, world->gpus[i].uuid)) {
            *gpu = &world->gpus[i];
            return (*gpu)->lost;
        }
    return 15;
}

__attribute__((unused)) static void *handle_of(const char *uuid) {
    int i = 0;
    while (i < 63 && handles[i][0] && strcmp(handles[i], uuid)) i++;
    snprintf(handles[i], sizeof handles[i], "%s", uuid);
    return handles[i];
}

static int text(const char *from, char *to, unsigned size) {
    if (!from[0]) return NOT_SUPPORTED;
    if (strlen(from) >= size) return INSUFFICIENT_SIZE;
    strcpy(to, from);
    return OK;
}

#define WORLD World world; int code = enter(&world, __func__); if (code) return code; if (!opened) return UNINITIALIZED;
#define GPU World world; Gpu *gpu = NULL; int code = at(device, __func__, &world, &gpu); if (code) return code;

static int open_driver(const char *function) {
    World world;
    int code = enter(&world, function);
    if (!code) opened++;
    return code;
}

int nvmlInit_v2(void) { return open_driver(__func__); }
int nvmlInitWithFlags(unsigned flags) { return flags ? INVALID_ARGUMENT : open_driver(__func__); }
int nvmlShutdown(void) {
    if (!opened) return UNINITIALIZED;
    opened--;
    return OK;
}
const char *nvmlErrorString(int code) { return code == 99 ? "An Error Of The Fake" : "Error"; }
int nvmlSystemGetDriverVersion(char *to, unsigned size) { WORLD return text(world.driver, to, size); }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { WORLD *version = 13020; return OK; }

#ifndef BARE
int nvmlDeviceGetCount_v2(unsigned *count) {
    WORLD
    *count = 0;
    for (int i = 0; i < world.count; i++) *count += !world.gpus[i].instance;
    return OK;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    WORLD
    for (int i = 0; i < world.count; i++)
        if (!world.gpus[i].instance && index-- == 0) {
            if (world.gpus[i].lost) return world.gpus[i].lost;
            *device = handle_of(world.gpus[i].uuid);
            return OK;
        }
    return INVALID_ARGUMENT;
}
#endif

int nvmlDeviceGetUUID(void *device, char *to, unsigned size) { GPU return text(gpu->uuid, to, size); }
int nvmlDeviceGetName(void *device, char *to, unsigned size) { GPU return text(gpu->name, to, size); }
int nvmlDeviceGetMemoryInfo(void *device, Memory *to) {
    GPU
    if (gpu->total < 0) return NOT_SUPPORTED;
    long reserved = gpu->reserved > 0 ? gpu->reserved : 0;
    to->total = (u64)gpu->total << 20;
    to->used = (u64)(gpu->used + reserved) << 20;
    to->free = to->total - to->used;
    return OK;
}
int nvmlDeviceGetUtilizationRates(void *device, Rates *to) {
    GPU
    if (gpu->util < 0) return NOT_SUPPORTED;
    to->gpu = (unsigned)gpu->util;
    to->memory = 0;
    return OK;
}
int nvmlDeviceGetTemperature(void *device, unsigned sensor, unsigned *to) {
    GPU
    if (gpu->temp < 0 || sensor) return NOT_SUPPORTED;
    *to = (unsigned)gpu->temp;
    return OK;
}
int nvmlDeviceGetPowerUsage(void *device, unsigned *to) {
    GPU
    if (gpu->power < 0) return NOT_SUPPORTED;
    *to = (unsigned)gpu->power;
    return OK;
}

#if !defined(OLD) && !defined(BARE)
int nvmlDeviceGetMemoryInfo_v2(void *device, MemoryV2 *to) {
    GPU
    if (to->version != (sizeof *to | 2u << 24)) return 25;
    if (gpu->total < 0) return NOT_SUPPORTED;
    to->total = (u64)gpu->total << 20;
    to->reserved = (u64)(gpu->reserved > 0 ? gpu->reserved : 0) << 20;
    to->used = (u64)gpu->used << 20;
    to->free = to->total - to->used - to->reserved;
    return OK;
}
int nvmlDeviceGetTemperatureV(void *device, Temperature *to) {
    GPU
    if (gpu->temp < 0) return NOT_SUPPORTED;
    to->temperature = (int)gpu->temp;
    return OK;
}
int nvmlDeviceGetPciInfo_v3(void *device, Pci *to) {
    GPU
    memset(to, 0, sizeof *to);
    return text(gpu->pci, to->bus_id, sizeof to->bus_id);
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, Process *to) {
    GPU
    if (gpu->quiet) return NOT_SUPPORTED;
    unsigned room = *count, found = 0;
    char list[256], *rest = list, *one;
    snprintf(list, sizeof list, "%s", gpu->procs);
    while ((one = strsep(&rest, ",")) != NULL && one[0]) {
        char *bytes = strchr(one, ':');
        if (to != NULL && found < room) {
            memset(&to[found], 0, sizeof to[found]);
            to[found].pid = (unsigned)atol(one);
            to[found].used = bytes && bytes[1] != '-' ? (u64)atol(bytes + 1) << 20 : ~0ULL;
        }
        found++;
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : OK;
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *device, unsigned *count, Process *to) {
    (void)to;
    GPU
    *count = 0;
    return gpu->quiet ? NOT_SUPPORTED : OK;
}
int nvmlDeviceGetMigMode(void *device, unsigned *current, unsigned *pending) {
    GPU
    if (gpu->instance) return NOT_SUPPORTED;
    *current = *pending = (unsigned)gpu->mig;
    return OK;
}
int nvmlDeviceGetMaxMigDeviceCount(void *device, unsigned *count) {
    GPU
    *count = gpu->mig ? 7 : 0;
    return OK;
}
int nvmlDeviceGetMigDeviceHandleByIndex(void *device, unsigned index, void **instance) {
    GPU
    for (int i = 0; i < world.count; i++)
        if (world.gpus[i].instance && !strcmp(world.gpus[i].parent, gpu->uuid) && index-- == 0) {
            *instance = handle_of(world.gpus[i].uuid);
            return OK;
        }
    return NOT_FOUND;
}
#endif
