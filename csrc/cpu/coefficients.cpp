#include "../coefficients.h"

#include "row_dots.h"

namespace steerfast {

void coefficients(const Read* reads, int count, const RowDots& dots, float* f, float* share) {
  auto dot_of = [&dots](int place) { return place < 0 ? 0.f : dots.p[place]; };
  *share = 0.f;
  for (int i = 0; i < count; ++i) {
    Dots given;
    given.p = dots.p[i];
    given.partner = dot_of(reads[i].partner);
    given.key = dot_of(reads[i].key);
    given.norm = dots.norm;
    given.exact_p = dots.exact_p[i];
    given.exact_squares = dots.exact_squares;
    const Coefficient coefficient = coefficient_of(reads[i], given);
    f[i] = coefficient.f;
    *share += coefficient.share;
  }
}

}  // namespace steerfast
