/* A port in small: RMS norm, RoPE, SwiGLU and a product with Q8_0 weights, forward and backward, in plain C, checked
 * against the golden vectors. kernels/README.md has the equations and the layout of the blocks.
 *
 *     cc -O2 -o port port.c -lm && ./port ../../tests/golden
 *
 * It prints a line for each result and ends with status 1 where one differs. The index, vectors.json, is read by searching
 * it for keys, which is enough for a file that make_vectors.py wrote; a real port has a JSON parser. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- the golden vectors --- */

static char *json_text;
static uint8_t *binary;

static char *read_file(const char *folder, const char *name, long *size) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END) || (*size = ftell(file)) < 0 || fseek(file, 0, SEEK_SET)) {
        fprintf(stderr, "port: cannot read %s\n", path);
        exit(2);
    }
    char *bytes = malloc(*size + 1);
    if (!bytes || fread(bytes, 1, *size, file) != (size_t)*size) {
        fprintf(stderr, "port: cannot read %s\n", path);
        exit(2);
    }
    bytes[*size] = 0;
    fclose(file);
    return bytes;
}

/* The text after "key": that comes first after `from`. */
static const char *value_of(const char *from, const char *key) {
    char quoted[64];
    snprintf(quoted, sizeof quoted, "\"%s\":", key);
    const char *found = from ? strstr(from, quoted) : NULL;
    if (!found) {
        fprintf(stderr, "port: vectors.json has no %s there\n", key);
        exit(2);
    }
    return found + strlen(quoted);
}
static const char *entry_of(const char *op) {
    char text[64];
    snprintf(text, sizeof text, "\"op\": \"%s\"", op);
    const char *found = strstr(json_text, text);
    return found ? found : value_of(json_text, op);
}
static double number(const char *entry, const char *key) { return atof(value_of(entry, key)); }

typedef struct { int rows, columns; const void *data; } array;        /* a vector has one row */

/* The array whose description begins at `at`. */
static array array_at(const char *at) {
    const char *shape = strchr(value_of(at, "shape"), '[') + 1;
    char *end;
    const long first = strtol(shape, &end, 10);
    end += strspn(end, " \n");
    array a = {1, (int)first, binary + (long)number(at, "offset")};
    if (*end == ',') a = (array){(int)first, (int)strtol(end + 1, NULL, 10), a.data};
    return a;
}
static array argument(const char *entry, const char *name) { return array_at(value_of(entry, name)); }

/* Array `index` of the op's results. */
static array result(const char *entry, int index) {
    const char *at = value_of(entry, "results");
    for (int i = 0; i < index; i++) at = value_of(at, "offset");
    return array_at(at);
}

static int failures;

/* Normalised mean squared error: sum (got - wanted)^2 / sum wanted^2. */
static void expect(const char *what, const float *got, array wanted) {
    const float *exact = wanted.data;
    double error = 0, size = 0;
    for (long i = 0; i < (long)wanted.rows * wanted.columns; i++) {
        error += ((double)got[i] - exact[i]) * ((double)got[i] - exact[i]);
        size += (double)exact[i] * exact[i];
    }
    const int good = error <= 1e-12 * size;               /* false for NaN */
    printf("%-6s %-24s NMSE %.1e\n", good ? "ok" : "FAILED", what, error / size);
    failures += !good;
}

static float *new_floats(array a) { return calloc((size_t)a.rows * a.columns, sizeof(float)); }
static float *copy(array a) { return memcpy(new_floats(a), a.data, sizeof(float) * a.rows * a.columns); }

/* --- the ops --- */

/* y = x rstd gain, rstd = 1 / sqrt(mean x^2 + eps) */
static void rms_norm_forward(float *y, float *rstd, const float *x, const float *gain, float eps, int T, int C) {
    for (int t = 0; t < T; t++, x += C, y += C) {
        double square = 0;
        for (int c = 0; c < C; c++) square += (double)x[c] * x[c];
        rstd[t] = 1 / sqrtf((float)(square / C) + eps);
        for (int c = 0; c < C; c++) y[c] = x[c] * rstd[t] * gain[c];
    }
}
static void rms_norm_backward(float *dx, float *dgain, const float *dy, const float *x, const float *gain,
                              const float *rstd, int T, int C) {
    for (int t = 0; t < T; t++, x += C, dy += C, dx += C) {
        double dot = 0;
        for (int c = 0; c < C; c++) dot += (double)dy[c] * gain[c] * x[c];
        const float k = (float)(dot / C) * rstd[t] * rstd[t];
        for (int c = 0; c < C; c++) dx[c] += rstd[t] * (dy[c] * gain[c] - k * x[c]);     /* both are added to */
        for (int c = 0; c < C; c++) dgain[c] += dy[c] * x[c] * rstd[t];
    }
}

/* Pairs (2j, 2j + 1) of each head, or (j, j + n_rot / 2). Backward is the same with -sin. */
static void rope(float *y, const float *x, const float *cos, const float *sin, const int *positions, int n_head,
                 int interleaved, int T, int width, int n_pairs) {
    const int D = width / n_head;
    memmove(y, x, sizeof(float) * T * width);
    for (int row = 0; row < T * n_head; row++)
        for (int j = 0; j < n_pairs; j++) {
            const long at = (long)positions[row / n_head] * n_pairs + j;
            float *a = y + row * D + (interleaved ? 2 * j : j), *b = a + (interleaved ? 1 : n_pairs);
            const float old_a = *a, old_b = *b;
            *a = old_a * cos[at] - old_b * sin[at];
            *b = old_a * sin[at] + old_b * cos[at];
        }
}

/* h = gate sigmoid(gate) up */
static void swiglu_forward(float *h, const float *gate, const float *up, long n) {
    for (long i = 0; i < n; i++) h[i] = gate[i] / (1 + expf(-gate[i])) * up[i];
}
static void swiglu_backward(float *dgate, float *dup, const float *dh, const float *gate, const float *up, long n) {
    for (long i = 0; i < n; i++) {
        const float z = gate[i], u = up[i], d = dh[i], sigmoid = 1 / (1 + expf(-z));
        dgate[i] = d * u * sigmoid * (1 + z * (1 - sigmoid));
        dup[i] = d * z * sigmoid;
    }
}

static float from_half(uint16_t h) {
    const int exponent = h >> 10 & 31, mantissa = h & 1023;
    const float size = exponent ? ldexpf((float)(mantissa + 1024), exponent - 25) : ldexpf((float)mantissa, -24);
    return h >> 15 ? -size : size;
}

/* A block of Q8_0: a scale d in half precision, little-endian, and 32 signed bytes q; the values are d q. */
static void unpack_q8_0(float *values, const uint8_t *blocks, long n) {
    for (long i = 0; i < n; i++) {
        const uint8_t *block = blocks + i / 32 * 34;
        values[i] = from_half((uint16_t)(block[0] | block[1] << 8)) * (int8_t)block[2 + i % 32];
    }
}

/* y = x W^T and dx = dy W */
static void linear_forward(float *y, const float *x, const float *W, int T, int K, int N) {
    for (int t = 0; t < T; t++)
        for (int n = 0; n < N; n++) {
            double sum = 0;
            for (int k = 0; k < K; k++) sum += (double)x[t * K + k] * W[n * K + k];
            y[t * N + n] = (float)sum;
        }
}
static void linear_backward(float *dx, const float *dy, const float *W, int T, int K, int N) {
    for (int t = 0; t < T; t++)
        for (int k = 0; k < K; k++) {
            double sum = 0;
            for (int n = 0; n < N; n++) sum += (double)dy[t * N + n] * W[n * K + k];
            dx[t * K + k] = (float)sum;
        }
}

/* --- the checks --- */

static void check_rms_norm(void) {
    const char *e = entry_of("rms_norm_forward");
    array x = argument(e, "x"), y = argument(e, "y"), rstd = argument(e, "rstd");
    float *y_got = new_floats(y), *rstd_got = new_floats(rstd);
    rms_norm_forward(y_got, rstd_got, x.data, argument(e, "gain").data, (float)number(e, "eps"), x.rows, x.columns);
    expect("rms_norm y", y_got, result(e, 0));
    expect("rms_norm rstd", rstd_got, result(e, 1));

    e = entry_of("rms_norm_backward");
    float *dx = copy(argument(e, "dx")), *dgain = copy(argument(e, "dgain"));
    x = argument(e, "x");
    rms_norm_backward(dx, dgain, argument(e, "dy").data, x.data, argument(e, "gain").data, argument(e, "rstd").data,
                      x.rows, x.columns);
    expect("rms_norm dx", dx, result(e, 0));
    expect("rms_norm dgain", dgain, result(e, 1));
}

static void check_rope(void) {
    const char *e = entry_of("rope_forward");
    const array x = argument(e, "x"), cos = argument(e, "cos"), sin = argument(e, "sin");
    const int *positions = argument(e, "positions").data, n_head = (int)number(e, "n_head");
    float *y = new_floats(x), *minus_sin = copy(sin);
    rope(y, x.data, cos.data, sin.data, positions, n_head, 1, x.rows, x.columns, cos.columns);
    expect("rope y", y, result(e, 0));
    for (long i = 0; i < (long)sin.rows * sin.columns; i++) minus_sin[i] = -minus_sin[i];
    rope(y, y, cos.data, minus_sin, positions, n_head, 1, x.rows, x.columns, cos.columns);
    expect("rope, turned back", y, x);
}

static void check_swiglu(void) {
    const char *e = entry_of("swiglu_forward");
    array gate = argument(e, "gate");
    float *h = new_floats(gate), *dgate = new_floats(gate), *dup = new_floats(gate);
    swiglu_forward(h, gate.data, argument(e, "up").data, (long)gate.rows * gate.columns);
    expect("swiglu h", h, result(e, 0));
    e = entry_of("swiglu_backward");
    gate = argument(e, "gate");
    swiglu_backward(dgate, dup, argument(e, "dh").data, gate.data, argument(e, "up").data,
                    (long)gate.rows * gate.columns);
    expect("swiglu dgate", dgate, result(e, 0));
    expect("swiglu dup", dup, result(e, 1));
}

/* Blocks of Q8_0 and their values, and from them a product both ways; its exact result is what float64 gives. */
static void check_q8_0_linear(void) {
    const char *e = strstr(json_text, "\"name\": \"Q8_0\"");
    const array blocks = argument(e, "blocks"), values = argument(e, "values");
    const int N = values.rows, K = values.columns, T = 2;
    float *W = new_floats(values), x[2 * 32], dy[2 * 2], y[2 * 2], y_exact[2 * 2], dx[2 * 32], dx_exact[2 * 32];
    unpack_q8_0(W, blocks.data, (long)N * K);
    expect("Q8_0 values", W, values);
    for (int i = 0; i < T * K; i++) x[i] = sinf((float)i), dx_exact[i] = 0;
    for (int i = 0; i < T * N; i++) dy[i] = cosf((float)i), y_exact[i] = 0;
    linear_forward(y, x, W, T, K, N);
    linear_backward(dx, dy, W, T, K, N);
    const float *exact = values.data;
    for (int i = 0; i < T * K * N; i++) {
        const int t = i / (K * N), k = i / N % K, n = i % N;
        y_exact[t * N + n] += x[t * K + k] * exact[n * K + k];
        dx_exact[t * K + k] += dy[t * N + n] * exact[n * K + k];
    }
    expect("linear y", y, (array){T, N, y_exact});
    expect("linear dx", dx, (array){T, K, dx_exact});
}

int main(int argc, char **argv) {
    long size;
    const char *folder = argc > 1 ? argv[1] : "../../tests/golden";
    json_text = read_file(folder, "vectors.json", &size);
    binary = (uint8_t *)read_file(folder, "vectors.bin", &size);
    check_rms_norm();
    check_rope();
    check_swiglu();
    check_q8_0_linear();
    return failures > 0;
}
