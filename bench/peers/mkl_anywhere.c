/* MKL, which PyTorch multiplies with, takes its fastest AVX2 code where this function of its own says that the processor
 * is Intel's, and slower code elsewhere. Preloaded, this one says so on any processor. */
int mkl_serv_intel_cpu_true(void) { return 1; }
