// One linear layer of ggml, repeated, for an emulator that counts instructions:
// ggml_linear TYPE ROWS COLS TOKENS REPEATS (the counterpart of crates/scrimp-kernels/examples/count_linear.rs).
//
// The weights are in the buffer type that llama.cpp selects: repacked where ggml has a kernel for that on this CPU.
// A repetition quantizes the activations and multiplies, on one thread.
#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <ggml.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static ggml_backend_buffer_type_t repacked(ggml_backend_dev_t device) {
    ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(device);
    ggml_backend_dev_get_extra_bufts_t extra =
        (ggml_backend_dev_get_extra_bufts_t)ggml_backend_reg_get_proc_address(reg, "ggml_backend_dev_get_extra_bufts");
    ggml_backend_buffer_type_t *types = extra ? extra(device) : NULL;
    return types && *types ? *types : ggml_backend_cpu_buffer_type();
}

int main(int argc, char **argv) {
    if (argc != 6) return 2;
    enum ggml_type type = GGML_TYPE_COUNT;
    for (int t = 0; t < GGML_TYPE_COUNT; t++) {
        if (ggml_type_name(t) && strcasecmp(ggml_type_name(t), argv[1]) == 0) type = t;
    }
    if (type == GGML_TYPE_COUNT) return 3;
    long rows = atol(argv[2]), cols = atol(argv[3]), tokens = atol(argv[4]), repeats = atol(argv[5]);
    ggml_backend_t backend = ggml_backend_cpu_init();
    ggml_backend_cpu_set_n_threads(backend, 1);
    struct ggml_init_params params = {1 << 20, NULL, true};
    struct ggml_context *weights = ggml_init(params), *rest = ggml_init(params);
    struct ggml_tensor *w = ggml_new_tensor_2d(weights, type, cols, rows);
    struct ggml_tensor *x = ggml_new_tensor_2d(rest, GGML_TYPE_F32, cols, tokens);
    struct ggml_tensor *y = ggml_mul_mat(rest, w, x);
    ggml_backend_buffer_type_t plain = ggml_backend_cpu_buffer_type();
    ggml_backend_buffer_type_t buffer = repacked(ggml_backend_get_device(backend));
    // A type without a kernel for repacked weights stays as it is.
    w->buffer = ggml_backend_buft_alloc_buffer(buffer, 0);
    ggml_backend_dev_t device = ggml_backend_get_device(backend);
    struct ggml_tensor probe = *w;
    struct ggml_tensor product = *y;
    product.src[0] = &probe;
    if (!ggml_backend_dev_supports_op(device, &product)) buffer = plain;
    w->buffer = NULL;
    ggml_backend_alloc_ctx_tensors_from_buft(weights, buffer);
    ggml_backend_alloc_ctx_tensors_from_buft(rest, plain);
    size_t bytes = ggml_nbytes(w);
    void *data = malloc(bytes);
    memset(data, 0x11, bytes);
    ggml_backend_tensor_set(w, data, 0, bytes);
    for (long i = 0; i < cols * tokens; i++) ((float *)x->data)[i] = 0.5f;
    struct ggml_cgraph *graph = ggml_new_graph(rest);
    ggml_build_forward_expand(graph, y);
    for (long i = 0; i < repeats; i++) ggml_backend_graph_compute(backend, graph);
    printf("%zu %s\n", bytes, ggml_backend_buft_name(buffer));
    return 0;
}
