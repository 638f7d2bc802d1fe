/* The activations of the feed-forward network, gated and not; see swiglu.pyx and activation.pyx for the equations. */
#ifndef LORAFAST_ACTIVATION_H
#define LORAFAST_ACTIVATION_H

#include <stddef.h>

#include "simd.h"

enum { ACTIVATION_SILU, ACTIVATION_GELU, ACTIVATION_RELU_SQUARED, ACTIVATION_CLAMPED_SILU, ACTIVATION_SIGMOID };

#define SIMD_BODY "activation_body.h"
#include "simd_foreach.h"

#endif
