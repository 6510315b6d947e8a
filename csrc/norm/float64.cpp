// GroupNorm and SiLU in float64.
#include "cpu/float64.h"
#include "norm/driver.h"

namespace vae_fast::norm {
const Drivers kFloat64 = drivers_of<cpu::Float64>();
}
