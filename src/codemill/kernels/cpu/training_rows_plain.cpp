// For every processor: vectors of four floats, which SSE2 and NEON have.
#include "training_rows_variant.h"

const codemill::TrainingRows* codemill::training_rows_plain() { return &kTrainingRows<4>; }
