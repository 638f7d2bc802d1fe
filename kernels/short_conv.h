/* Short causal convolutions, one for each column; see short_conv.pyx for the equations. */
#ifndef LORAFAST_SHORT_CONV_H
#define LORAFAST_SHORT_CONV_H

#include <stddef.h>
#include <string.h>

#include "simd.h"

#define CONV_COLUMNS 1024        /* that a thread owns at a time, at most: a page of every row */
#define CONV_FEWEST 128          /* at least, where many threads share a sequence */
#define CONV_AHEAD 8             /* rows from asking for one to its use */
#define CONV_MAX_WIDTH 16        /* taps; 3 and 4 in the models that have such convolutions */

#define SIMD_BODY "short_conv_body.h"
#include "simd_foreach.h"

#endif
