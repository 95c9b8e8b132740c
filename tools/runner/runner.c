/* edgeopt's native worker: edgeopt/bench/worker.py for devices without Python, such as phones.
 *
 *     runner LIBONNXRUNTIME
 *
 * In: one JSON line on stdin (edgeopt.device.base.WorkerRequest). Out: one line on stdout, "edgeopt-worker" and JSON.
 * It ends when stdin does. It opens the library by its path and asks for version 5 of the C API. No later ONNX Runtime
 * may move the entries of that version, so one binary runs with every release since 1.5. It only has the CPU provider.
 *
 * Arrays are in files of records: a line "BATCH DTYPE NDIM DIM... BYTES NAME", then the bytes, little-endian.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#define MAX_ARRAYS 64
#define MAX_DIMS 16

/* Tests compile it with other values. */
#ifndef SYS
#define SYS "/sys"
#endif
#ifndef COOL_STEP_SECONDS
#define COOL_STEP_SECONDS 3
#endif
#ifndef COOL_MAX_SECONDS
#define COOL_MAX_SECONDS 120
#endif

typedef void *Handle;
typedef struct { const Handle *(*get_api)(uint32_t); const char *(*version)(void); } ApiBase;

/* Positions in OrtApi, a table of functions in a fixed order. */
enum {
    ERROR_MESSAGE = 2, CREATE_ENV = 3, DISABLE_TELEMETRY = 6, CREATE_SESSION = 7, RUN = 9, CREATE_OPTIONS = 10,
    EXECUTION_MODE = 13, ENABLE_ARENA = 18, DISABLE_ARENA = 19, LOG_SEVERITY = 22, OPTIMIZATION = 23,
    INTRA_THREADS = 24, INTER_THREADS = 25, INPUT_COUNT = 30, OUTPUT_COUNT = 31, INPUT_TYPE = 33, INPUT_NAME = 36,
    OUTPUT_NAME = 37, TENSOR_OVER_DATA = 49, TENSOR_DATA = 51, AS_TENSOR_INFO = 55, ELEMENT_TYPE = 60, DIM_COUNT = 61,
    DIMS = 62, ELEMENT_COUNT = 64, SHAPE_OF_VALUE = 65, CPU_MEMORY = 69, DEFAULT_ALLOCATOR = 78, RELEASE_VALUE = 96,
    RELEASE_SHAPE = 99, CONFIG_ENTRY = 130
};

typedef struct { const char *name; int kind; size_t bytes; } Dtype;
static const Dtype DTYPES[] = {
    {"float32", 1, 4}, {"uint8", 2, 1}, {"int8", 3, 1}, {"uint16", 4, 2}, {"int16", 5, 2}, {"int32", 6, 4},
    {"int64", 7, 8}, {"bool", 9, 1}, {"float16", 10, 2}, {"float64", 11, 8}, {"uint32", 12, 4}, {"uint64", 13, 8},
};

typedef struct {
    long batch;
    char *name;
    const Dtype *dtype;
    size_t dims;
    int64_t dim[MAX_DIMS];
    size_t bytes;
    void *data;
} Array;

static const Handle *api;
static const char *library_version;
static Handle session, memory_info;
static char *input_names[MAX_ARRAYS], *output_names[MAX_ARRAYS];
static size_t inputs, outputs;

/* -- answers ------------------------------------------------------------------------------------------------------ */

static void print_string(const char *text) {
    putchar('"');
    for (; *text; text++) {
        unsigned char letter = (unsigned char)*text;
        if (letter == '"' || letter == '\\') printf("\\%c", letter);
        else if (letter < 32) putchar(' ');
        else putchar(letter);
    }
    putchar('"');
}

static char *next_line(void);

static void begin_answer(void) { fputs("edgeopt-worker {\"ok\": true", stdout); }

static void end_answer(void) {
    puts("}");
    fflush(stdout);
}

/* Answers with the reason, and waits for stdin to end, which ends the process. */
static void refuse(const char *kind, const char *reason, const char *argument) {
    char text[2048];
    snprintf(text, sizeof text, reason, argument);
    printf("edgeopt-worker {\"ok\": false, \"kind\": \"%s\", \"reason\": ", kind);
    print_string(text);
    end_answer();
    for (;;) next_line();
}

static void check(Handle status, const char *kind) {
    if (status) refuse(kind, "%s", ((const char *(*)(Handle))api[ERROR_MESSAGE])(status));
}

static void refuse_file(const char *path) {
    int full = errno == ENOSPC || errno == EDQUOT;
    char text[1024];
    snprintf(text, sizeof text, "%s: %s", path, strerror(errno));
    refuse(full ? "device" : "input", "%s", text);
}

/* -- requests ----------------------------------------------------------------------------------------------------- */

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t arrived = PTHREAD_COND_INITIALIZER;
static char *waiting;

/* Passes on stdin's lines, and ends the process when stdin ends: the other side is gone. */
static void *watch_stdin(void *unused) {
    (void)unused;
    for (;;) {
        char *line = NULL;
        size_t size = 0;
        if (getline(&line, &size, stdin) < 0) _exit(0);
        pthread_mutex_lock(&mutex);
        while (waiting) pthread_cond_wait(&arrived, &mutex);
        waiting = line;
        pthread_cond_broadcast(&arrived);
        pthread_mutex_unlock(&mutex);
    }
}

static char *next_line(void) {
    pthread_mutex_lock(&mutex);
    while (!waiting) pthread_cond_wait(&arrived, &mutex);
    char *line = waiting;
    waiting = NULL;
    pthread_cond_broadcast(&arrived);
    pthread_mutex_unlock(&mutex);
    return line;
}

/* Returns the beginning of a field's value: requests are flat, and their strings only hold paths that edgeopt made. */
static const char *field(const char *line, const char *name) {
    char key[64];
    snprintf(key, sizeof key, "\"%s\":", name);
    const char *found = strstr(line, key);
    if (!found) refuse("input", "the request lacks '%s': this runner is from another version of edgeopt", name);
    found += strlen(key);
    return found + strspn(found, " ");
}

static double number(const char *line, const char *name) { return strtod(field(line, name), NULL); }

static int flag(const char *line, const char *name) { return *field(line, name) == 't'; }

static char *text_of(const char *line, const char *name) {
    const char *value = field(line, name) + 1;
    return strndup(value, strcspn(value, "\""));
}

static void check_providers(const char *line) {
    const char *wanted = field(line, "providers"), *allowed = field(line, "allow_fallback");
    const char *cpu = "\"CPUExecutionProvider\"";
    char *first = strndup(wanted, strcspn(wanted, "]")), *other = strndup(allowed, strcspn(allowed, "]"));
    if (strncmp(first + 1, cpu, strlen(cpu)) != 0 && !strstr(other, cpu)) {
        first[strcspn(first, ",")] = 0;
        refuse("provider", "this runner only has CPUExecutionProvider, not %s", first + 1);
    }
    free(first);
    free(other);
}

/* -- arrays ------------------------------------------------------------------------------------------------------- */

static const Dtype *find_dtype(const char *name, int kind) {
    for (size_t i = 0; i < sizeof DTYPES / sizeof *DTYPES; i++)
        if (name ? !strcmp(DTYPES[i].name, name) : DTYPES[i].kind == kind) return &DTYPES[i];
    return NULL;
}

/* Reads the next array of a file; false at its end. */
static int read_array(FILE *file, Array *array) {
    char *line = NULL, *at;
    size_t size = 0, length;
    memset(array, 0, sizeof *array);
    if (getline(&line, &size, file) < 0) {
        free(line);
        return 0;
    }
    array->batch = strtol(line, &at, 10);
    at += strspn(at, " ");
    length = strcspn(at, " ");
    char *dtype = strndup(at, length);
    array->dims = strtoul(at + length, &at, 10);
    if (array->dims > MAX_DIMS || !(array->dtype = find_dtype(dtype, 0)))
        refuse("input", "this runner can't read an array of type %s", dtype);
    for (size_t dim = 0; dim < array->dims; dim++) array->dim[dim] = strtoll(at, &at, 10);
    array->bytes = strtoul(at, &at, 10);
    array->name = strndup(at + 1, strcspn(at + 1, "\n"));
    array->data = malloc(array->bytes ? array->bytes : 1);
    if (!array->data || fread(array->data, 1, array->bytes, file) != array->bytes)
        refuse("input", "%s", "the inputs file ends too early");
    free(dtype);
    free(line);
    return 1;
}

static void write_array(FILE *file, long batch, const char *name, Handle value) {
    Handle shape;
    int kind;
    size_t dims, count;
    int64_t dim[MAX_DIMS];
    void *data;
    check(((Handle(*)(Handle, Handle *))api[SHAPE_OF_VALUE])(value, &shape), "model");
    check(((Handle(*)(Handle, int *))api[ELEMENT_TYPE])(shape, &kind), "model");
    check(((Handle(*)(Handle, size_t *))api[DIM_COUNT])(shape, &dims), "model");
    const Dtype *dtype = find_dtype(NULL, kind);
    if (!dtype || dims > MAX_DIMS) refuse("model", "this runner can't send the type of output '%s'", name);
    check(((Handle(*)(Handle, int64_t *, size_t))api[DIMS])(shape, dim, dims), "model");
    check(((Handle(*)(Handle, size_t *))api[ELEMENT_COUNT])(shape, &count), "model");
    check(((Handle(*)(Handle, void **))api[TENSOR_DATA])(value, &data), "model");
    fprintf(file, "%ld %s %zu", batch, dtype->name, dims);
    for (size_t i = 0; i < dims; i++) fprintf(file, " %lld", (long long)dim[i]);
    fprintf(file, " %zu %s\n", count * dtype->bytes, name);
    fwrite(data, dtype->bytes, count, file);
    ((void (*)(Handle))api[RELEASE_SHAPE])(shape);
}

static uint32_t random_bits(void) {
    static uint32_t state = 2463534242u;
    state ^= state << 13;
    state ^= state >> 17;
    return state ^= state << 5;
}

/* Makes random values for an input; wide integers are 0 or 1, which are rows of any embedding table. */
static void make_random_array(size_t input, long batch, Array *array) {
    Handle type, shape;
    int kind;
    check(((Handle(*)(Handle, size_t, Handle *))api[INPUT_TYPE])(session, input, &type), "model");
    check(((Handle(*)(Handle, Handle *))api[AS_TENSOR_INFO])(type, &shape), "model");
    if (!shape) refuse("input", "input '%s' is not a tensor", input_names[input]);
    check(((Handle(*)(Handle, int *))api[ELEMENT_TYPE])(shape, &kind), "model");
    check(((Handle(*)(Handle, size_t *))api[DIM_COUNT])(shape, &array->dims), "model");
    array->dtype = find_dtype(NULL, kind);
    if (!array->dtype || array->dims > MAX_DIMS)
        refuse("input", "can't make random values for input '%s': pass --inputs FILE.npz", input_names[input]);
    check(((Handle(*)(Handle, int64_t *, size_t))api[DIMS])(shape, array->dim, array->dims), "model");
    size_t count = 1;
    for (size_t dim = 0; dim < array->dims; dim++) {
        if (array->dim[dim] < 0 && dim)
            refuse("input", "input '%s' has dynamic dimensions besides the batch: pass --inputs FILE.npz", input_names[input]);
        if (array->dim[dim] < 0) array->dim[dim] = batch;
        else if (!dim && array->dim[dim] != batch)
            refuse("input", "input '%s' has another fixed batch size", input_names[input]);
        count *= (size_t)array->dim[dim];
    }
    array->bytes = count * array->dtype->bytes;
    uint8_t *data = array->data = calloc(count ? count : 1, array->dtype->bytes);
    for (size_t item = 0; item < count; item++) {
        double unit = random_bits() / 4294967296.0;
        double normal = sqrt(-2 * log(unit + 1e-12)) * cos(random_bits() / 683565275.6);
        if (kind == 1) ((float *)data)[item] = (float)normal;
        else if (kind == 11) ((double *)data)[item] = normal;
        else if (kind == 10) ((uint16_t *)data)[item] = (uint16_t)(0x3800 | (random_bits() & 0x83ff)); /* 0.5 to 1, signed */
        else if (kind <= 3) data[item] = (uint8_t)random_bits();
        else data[item * array->dtype->bytes] = random_bits() >> 31;
    }
    array->name = input_names[input];
}

/* -- sessions ----------------------------------------------------------------------------------------------------- */

static int64_t now(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void set_config(Handle options, const char *key, const char *value) {
    check(((Handle(*)(Handle, const char *, const char *))api[CONFIG_ENTRY])(options, key, value), "model");
}

/* Binds this thread, and the threads that it starts later, to the cores that the request names. */
static void bind_cores(const char *line) {
    cpu_set_t allowed, wanted;
    CPU_ZERO(&wanted);
    sched_getaffinity(0, sizeof allowed, &allowed);
    const char *at = field(line, "affinity") + 1;
    while (*at && *at != ']') {
        char *end, name[24];
        long core = strtol(at, &end, 10);
        snprintf(name, sizeof name, "%ld", core);
        if (core < 0 || core >= CPU_SETSIZE || !CPU_ISSET(core, &allowed))
            refuse("profile", "the target's affinity names core %s, which a process on this device may not use", name);
        CPU_SET(core, &wanted);
        at = end + strspn(end, ", ");
    }
    if (CPU_COUNT(&wanted)) sched_setaffinity(0, sizeof wanted, &wanted);
}

/* Returns ONNX Runtime's number for the request's level of graph optimization. */
static int read_graph_level(const char *line) {
    char *level = text_of(line, "graph_level");
    int number = !strcmp(level, "disabled") ? 0 : !strcmp(level, "basic") ? 1 : !strcmp(level, "extended") ? 2 : 99;
    free(level);
    return number;
}

static int64_t open_session(const char *line) {
    Handle env, options, allocator;
    char *model = text_of(line, "model");
    check_providers(line);
    bind_cores(line);
    if (access(model, R_OK)) refuse("model", "%s does not exist", model);
    check(((Handle(*)(int, const char *, Handle *))api[CREATE_ENV])(3, "edgeopt", &env), "model");
    check(((Handle(*)(Handle))api[DISABLE_TELEMETRY])(env), "model");
    check(((Handle(*)(Handle *))api[CREATE_OPTIONS])(&options), "model");
    check(((Handle(*)(Handle, int))api[INTRA_THREADS])(options, (int)number(line, "threads")), "model");
    check(((Handle(*)(Handle, int))api[INTER_THREADS])(options, 1), "model");
    check(((Handle(*)(Handle, int))api[EXECUTION_MODE])(options, 0), "model");
    check(((Handle(*)(Handle, int))api[OPTIMIZATION])(options, read_graph_level(line)), "model");
    check(((Handle(*)(Handle, int))api[LOG_SEVERITY])(options, 3), "model");
    check(((Handle(*)(Handle))api[flag(line, "memory_arena") ? ENABLE_ARENA : DISABLE_ARENA])(options), "model");
    set_config(options, "session.intra_op.allow_spinning", flag(line, "allow_spinning") ? "1" : "0");
    set_config(options, "session.inter_op.allow_spinning", "0");
    int64_t begin = now(CLOCK_MONOTONIC);
    check(((Handle(*)(Handle, const char *, Handle, Handle *))api[CREATE_SESSION])(env, model, options, &session), "model");
    int64_t load_ns = now(CLOCK_MONOTONIC) - begin;
    check(((Handle(*)(Handle *))api[DEFAULT_ALLOCATOR])(&allocator), "model");
    check(((Handle(*)(int, int, Handle *))api[CPU_MEMORY])(1, 0, &memory_info), "model");
    check(((Handle(*)(Handle, size_t *))api[INPUT_COUNT])(session, &inputs), "model");
    check(((Handle(*)(Handle, size_t *))api[OUTPUT_COUNT])(session, &outputs), "model");
    if (inputs > MAX_ARRAYS || outputs > MAX_ARRAYS) refuse("model", "%s has too many inputs or outputs", model);
    for (size_t i = 0; i < inputs + outputs; i++) {
        int out = i >= inputs;
        check(((Handle(*)(Handle, size_t, Handle, char **))api[out ? OUTPUT_NAME : INPUT_NAME])(
                  session, out ? i - inputs : i, allocator, out ? &output_names[i - inputs] : &input_names[i]),
              "model");
    }
    free(model);
    return load_ns;
}

static Handle make_tensor(const Array *array) {
    Handle value;
    check(((Handle(*)(Handle, void *, size_t, const int64_t *, size_t, int, Handle *))api[TENSOR_OVER_DATA])(
              memory_info, array->data, array->bytes, array->dim, array->dims, array->dtype->kind, &value),
          "input");
    return value;
}

static void run(Handle *feed, Handle *results) {
    memset(results, 0, outputs * sizeof *results);
    check(((Handle(*)(Handle, Handle, char *const *, Handle *, size_t, char *const *, size_t, Handle *))api[RUN])(
              session, NULL, input_names, feed, inputs, output_names, outputs, results),
          "model");
}

static void release(Handle *values, size_t count) {
    for (size_t i = 0; i < count; i++) ((void (*)(Handle))api[RELEASE_VALUE])(values[i]);
}

/* Makes one batch: the first of the inputs file, which has as many samples as the request asks for, or random values. */
static void make_feed(const char *line, Handle *feed) {
    long batch = (long)number(line, "batch_size");
    char *path = text_of(line, "inputs");
    FILE *file = *path ? fopen(path, "rb") : NULL;
    if (*path && !file) refuse_file(path);
    for (size_t i = 0; i < inputs; i++) {
        Array array = {0};
        if (file) {
            rewind(file);
            do {
                if (!read_array(file, &array) || array.batch) refuse("input", "the inputs file has no array '%s'", input_names[i]);
            } while (strcmp(array.name, input_names[i]) != 0);
        } else {
            make_random_array(i, batch, &array);
        }
        feed[i] = make_tensor(&array);
    }
    if (file) fclose(file);
    free(path);
}

/* -- modes -------------------------------------------------------------------------------------------------------- */

typedef struct { int64_t *wall, *cpu; size_t count; } Times;

/* Runs until `min_runs` and `min_seconds` are both reached, or for `max_seconds`. */
static Times repeat(Handle *feed, double min_runs, double min_seconds, double max_seconds) {
    Times times = {0};
    size_t capacity = 0;
    Handle results[MAX_ARRAYS];
    int64_t begin = now(CLOCK_MONOTONIC);
    for (;;) {
        if (times.count == capacity) {
            capacity = capacity ? 2 * capacity : 1024;
            times.wall = realloc(times.wall, capacity * sizeof *times.wall);
            times.cpu = realloc(times.cpu, capacity * sizeof *times.cpu);
        }
        int64_t cpu_begin = now(CLOCK_PROCESS_CPUTIME_ID), wall_begin = now(CLOCK_MONOTONIC);
        run(feed, results);
        int64_t wall_end = now(CLOCK_MONOTONIC);
        times.cpu[times.count] = now(CLOCK_PROCESS_CPUTIME_ID) - cpu_begin;
        times.wall[times.count++] = wall_end - wall_begin;
        release(results, outputs);
        double elapsed = (double)(wall_end - begin) / 1e9;
        if ((elapsed >= min_seconds && (double)times.count >= min_runs) || elapsed >= max_seconds) return times;
    }
}

static void free_times(Times times) {
    free(times.wall);
    free(times.cpu);
}

static int compare_times(const void *left, const void *right) {
    int64_t a = *(const int64_t *)left, b = *(const int64_t *)right;
    return (a > b) - (a < b);
}

/* Returns the median of the last `count` runs, which it sorts. */
static double median(Times times, size_t count) {
    if (count > times.count) count = times.count;
    int64_t *last = times.wall + times.count - count;
    qsort(last, count, sizeof *last, compare_times);
    return (double)(last[(count - 1) / 2] + last[count / 2]) / 2;
}

/* Warms up like worker.py, with its numbers: block after block, until one is no faster than the block before. */
static size_t warm_up(const char *line, Handle *feed, int *steady) {
    double max_seconds = number(line, "max_seconds");
    int64_t end = now(CLOCK_MONOTONIC) + (int64_t)(max_seconds * 1e9);
    Times block = repeat(feed, number(line, "warmup_runs"), number(line, "warmup_seconds"), max_seconds);
    size_t count = block.count;
    double before = median(block, 5), after;
    free_times(block);
    for (*steady = 0; !*steady && now(CLOCK_MONOTONIC) < end; before = after) {
        block = repeat(feed, 5, 0.03, max_seconds);
        count += block.count;
        after = median(block, block.count);
        *steady = after > 0.98 * before;
        free_times(block);
    }
    return count;
}

static void print_times(Times times) {
    for (int cpu = 0; cpu < 2; cpu++) {
        printf(", \"%s_ns\": [", cpu ? "cpu" : "wall");
        for (size_t i = 0; i < times.count; i++)
            printf("%s%lld", i ? "," : "", (long long)(cpu ? times.cpu : times.wall)[i]);
        putchar(']');
    }
}

static long read_number(const char *path, const char *key) {
    char text[256];
    long found = -1;
    FILE *file = fopen(path, "r");
    while (file && fgets(text, sizeof text, file))
        if (!strncmp(text, key, strlen(key))) found = strtol(text + strlen(key), NULL, 10);
    if (file) fclose(file);
    return found;
}

static long long read_peak_bytes(void) { return 1024LL * read_number("/proc/self/status", "VmHWM:"); }

static int reset_peak(void) {
    FILE *file = fopen("/proc/self/clear_refs", "w");
    if (!file) return 0;
    int written = fputs("5", file) >= 0;
    return fclose(file) == 0 && written;
}

/* Returns the temperature of the hottest zone in °C; negative if the system shows none. */
static double read_temperature_c(void) {
    char path[sizeof SYS + 64];
    double hottest = -1;
    for (int zone = 0; zone < 100; zone++) {
        snprintf(path, sizeof path, SYS "/class/thermal/thermal_zone%d/temp", zone);
        double found = (double)read_number(path, "") / 1000;
        if (found > hottest && found < 200) hottest = found;
    }
    return hottest < 0 ? -1 : hottest;
}

/* Waits while the processor is hot and still cooling, and returns the seconds. Like worker.py, with its numbers. */
static int cool_down(void) {
    int waited = 0;
    double before = read_temperature_c(), after;
    for (; before > 60 && waited < COOL_MAX_SECONDS; before = after) {
        sleep(COOL_STEP_SECONDS);
        waited += COOL_STEP_SECONDS;
        after = read_temperature_c();
        if (before - after < 0.5) break;
    }
    return waited;
}

static void time_model(const char *line) {
    Handle feed[MAX_ARRAYS];
    int64_t load_ns = open_session(line);
    make_feed(line, feed);
    int cooled = cool_down();
    double max_seconds = number(line, "max_seconds"), before_c = read_temperature_c();
    int steady;
    size_t warmup_runs = warm_up(line, feed, &steady);
    long switches = read_number("/proc/self/status", "nonvoluntary_ctxt_switches:");
    Times times = repeat(feed, number(line, "min_runs"), number(line, "min_seconds"), max_seconds);
    switches = read_number("/proc/self/status", "nonvoluntary_ctxt_switches:") - switches;
    begin_answer();
    printf(", \"warmup_runs\": %zu, \"steady\": %s, \"load_ns\": %lld, \"involuntary_switches\": %ld, \"pressure_ratio\": null, \"nodes\": {}",
           warmup_runs, steady ? "true" : "false", (long long)load_ns, switches);
    printf(", \"cooled_seconds\": %d, \"temperatures_c\": ", cooled);
    if (before_c < 0) fputs("null", stdout);
    else printf("[%.1f, %.1f]", before_c, read_temperature_c());
    print_times(times);
    end_answer();
}

static void measure_memory(const char *line) {
    Handle feed[MAX_ARRAYS];
    if (!reset_peak()) {
        begin_answer();
        fputs(", \"supported\": false", stdout);
        end_answer();
        return;
    }
    long long baseline = read_peak_bytes();
    open_session(line);
    long long load = read_peak_bytes();
    make_feed(line, feed);
    reset_peak();
    free_times(repeat(feed, number(line, "min_runs"), 0, number(line, "max_seconds")));
    begin_answer();
    printf(", \"supported\": true, \"baseline_bytes\": %lld, \"load_peak_bytes\": %lld, \"run_peak_bytes\": %lld, "
           "\"device_peak_bytes\": null", baseline, load - baseline, read_peak_bytes() - baseline);
    end_answer();
}

static void run_batches(const char *line) {
    char *from = text_of(line, "inputs"), *to = text_of(line, "outputs");
    open_session(line);
    FILE *source = fopen(from, "rb"), *target = source ? fopen(to, "wb") : NULL;
    if (!target) refuse_file(source ? to : from);
    Array array[MAX_ARRAYS], ahead;
    Handle feed[MAX_ARRAYS], results[MAX_ARRAYS];
    long batches = 0;
    int more = read_array(source, &ahead);
    while (more) {
        size_t count = 0;
        long batch = ahead.batch;
        for (; more && ahead.batch == batch && count < MAX_ARRAYS; more = read_array(source, &ahead)) array[count++] = ahead;
        for (size_t i = 0; i < inputs; i++) {
            size_t found = 0;
            while (found < count && strcmp(array[found].name, input_names[i]) != 0) found++;
            if (found == count) refuse("input", "the inputs file has no array '%s'", input_names[i]);
            feed[i] = make_tensor(&array[found]);
        }
        run(feed, results);
        for (size_t i = 0; i < outputs; i++) write_array(target, batch, output_names[i], results[i]);
        release(results, outputs);
        release(feed, inputs);
        for (size_t i = 0; i < count; i++) {
            free(array[i].data);
            free(array[i].name);
        }
        batches++;
    }
    fclose(source);
    int failed = ferror(target);
    if (fclose(target) || failed) refuse_file(to);
    begin_answer();
    printf(", \"batches\": %ld", batches);
    end_answer();
}

static void serve(const char *line) {
    Handle feed[MAX_ARRAYS];
    open_session(line);
    make_feed(line, feed);
    free_times(repeat(feed, number(line, "warmup_runs"), number(line, "warmup_seconds"), number(line, "max_seconds")));
    begin_answer();
    fputs(", \"nodes\": {}, \"precise_cpu_clock\": true", stdout);
    end_answer();
    for (;;) {
        char *block = next_line();
        double max_seconds = number(block, "max_seconds");
        free_times(repeat(feed, number(block, "warmup_runs"), 0, max_seconds));
        Times times = repeat(feed, number(block, "min_runs"), number(block, "min_seconds"), max_seconds);
        begin_answer();
        print_times(times);
        end_answer();
        free_times(times);
        free(block);
    }
}

/* Copies a value of the first processor in /proc/cpuinfo; empty if there is none. */
static void read_cpuinfo(const char *key, char *value, size_t size) {
    char text[4096];
    FILE *file = fopen("/proc/cpuinfo", "r");
    *value = 0;
    while (file && !*value && fgets(text, sizeof text, file)) {
        char *colon = strchr(text, ':');
        if (!colon || strncmp(text, key, strlen(key)) != 0 || !strchr("\t :", text[strlen(key)])) continue;
        colon += 1 + strspn(colon + 1, " \t");
        snprintf(value, size, "%.*s", (int)strcspn(colon, "\n"), colon);
    }
    if (file) fclose(file);
}

static void describe(void) {
    static const char *features[] = {"amx_int8", "asimd", "asimddp", "asimdfhm", "asimdhp", "avx", "avx2", "avx512_bf16",
        "avx512_vnni", "avx512bw", "avx512f", "avx_vnni", "bf16", "f16c", "fma", "i8mm", "sve", "sve2"};
    static const char *family[] = {"cpu family", "model", "stepping", "CPU implementer", "CPU part"};
    char value[4096], name[256];
    struct utsname system;
    cpu_set_t cores;
    uname(&system);
    begin_answer();
    printf(", \"family\": \"%s", system.machine);
    for (size_t i = 0; i < sizeof family / sizeof *family; i++) {
        read_cpuinfo(family[i], value, sizeof value);
        if (*value) printf(" %s", value);
    }
    read_cpuinfo("model name", name, sizeof name);
    if (!*name) read_cpuinfo("Hardware", name, sizeof name);
    fputs("\", \"processor\": ", stdout);
    print_string(*name ? name : system.machine);
    read_cpuinfo("flags", value, sizeof value);
    if (!*value) read_cpuinfo("Features", value, sizeof value);
    fputs(", \"features\": [", stdout);
    int some = 0;
    for (size_t i = 0; i < sizeof features / sizeof *features; i++) {
        char padded[4100], word[32];
        snprintf(padded, sizeof padded, " %s ", value);
        snprintf(word, sizeof word, " %s ", features[i]);
        if (strstr(padded, word)) printf("%s\"%s\"", some++ ? ", " : "", features[i]);
    }
    sched_getaffinity(0, sizeof cores, &cores);
    printf("], \"cores\": %d, \"memory_bytes\": %lld", CPU_COUNT(&cores),
           1024LL * read_number("/proc/meminfo", "MemTotal:"));
    printf(", \"system\": \"%s-%s-%s\"", system.sysname, system.release, system.machine);
    printf(", \"python\": \"none: edgeopt's native runner\", \"onnxruntime\": \"%s\", \"numpy\": \"none\"", library_version);
    fputs(", \"providers\": [\"CPUExecutionProvider\"]", stdout);
    char governor[64] = "";
    FILE *file = fopen(SYS "/devices/system/cpu/cpu0/cpufreq/scaling_governor", "r");
    if (file && fgets(governor, sizeof governor, file)) governor[strcspn(governor, "\n")] = 0;
    if (file) fclose(file);
    fputs(", \"governor\": ", stdout);
    if (*governor) print_string(governor);
    else fputs("null", stdout);
    double hottest = read_temperature_c();
    if (hottest < 0) fputs(", \"temperature_c\": null", stdout);
    else printf(", \"temperature_c\": %.1f", hottest);
    end_answer();
}

int main(int count, char **words) {
    pthread_t thread;
    if (count != 2) {
        fputs("usage: runner LIBONNXRUNTIME\n", stderr);
        return 2;
    }
    setenv("ORT_DISABLE_TELEMETRY", "1", 1);
    pthread_create(&thread, NULL, watch_stdin, NULL);
    char *line = next_line(), *mode = text_of(line, "mode");
    Handle library = dlopen(words[1], RTLD_NOW | RTLD_LOCAL);
    if (!library) refuse("device", "ONNX Runtime's library does not load: %s", dlerror());
    ApiBase *(*base)(void) = (ApiBase * (*)(void)) dlsym(library, "OrtGetApiBase");
    if (!base) refuse("device", "%s is not ONNX Runtime's library", words[1]);
    library_version = base()->version();
    api = base()->get_api(5);
    if (!api) refuse("device", "%s does not have version 5 of the C API", words[1]);
    if (!strcmp(mode, "time")) time_model(line);
    else if (!strcmp(mode, "memory")) measure_memory(line);
    else if (!strcmp(mode, "outputs")) run_batches(line);
    else if (!strcmp(mode, "serve")) serve(line);
    else if (!strcmp(mode, "describe")) describe();
    else refuse("device", "this runner has no mode '%s'", mode);
    for (;;) next_line();
}
