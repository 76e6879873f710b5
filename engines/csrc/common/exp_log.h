// e^x and ln x without branches or tables, for single floats and for lanes: the same operations,
// hence the same bits, wherever the file is compiled without contraction.
#pragma once

#include "common/lanes.h"

namespace twofour {
namespace {

// e^r for |r| <= ln(2) / 2: how, and how ln 2 is split to go with it. ln2_high has so few bits that
// n * ln2_high is exact, and ln2_low is the rest (Cody and Waite).

// The first terms of the series; within 2 ulp. The engine's answers are made of its bits.
struct Taylor {
  static constexpr float ln2_high = 0.693145752f, ln2_low = 1.42860677e-6f;

  template <class V>
  static V exp(V r) {
    V p = V{} + 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    return p * r + 1.0f;
  }
};

// The polynomial of Cephes' expf; about 1 ulp. Learned masks are made of its bits.
struct Cephes {
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;

  template <class V>
  static V exp(V r) {
    V p = V{} + 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return p * (r * r) + r + 1.0f;
  }
};

// e^x for x in [-87, 88], of a float or of lanes: 2^n e^r with n = round(x / ln 2), r = x - n ln 2.
template <class Polynomial, class V>
inline V exp_within_range(V x) {
  // From 2^23 to 2^24 floats are the whole numbers: the sum rounds x / ln 2 to the nearest of them,
  // and its lowest bits are n. Starting in the middle keeps it there for negative n, too.
  const V shifted = x * 1.44269504f + 12582912.0f;
  const V n = shifted - 12582912.0f;
  const V r = (x - n * Polynomial::ln2_high) - n * Polynomial::ln2_low;
  // Adding n to the exponent's bits multiplies by 2^n; shifting left by 23 drops all above n.
  return as_float(as_bits(Polynomial::exp(r)) + (as_bits(shifted) << 23));
}

// e^x for x <= 0, which is what a softmax needs: less than e^-87 is not told from it. NaN stays
// NaN.
template <class Polynomial>
inline Floats exp_nonpositive(Floats x) {
  return exp_within_range<Polynomial>(x < -87.0f ? splat(-87.0f) : x);
}

// Natural logarithm of positive normal numbers: the polynomial of Cephes' logf, about 1 ulp.
inline Floats log(Floats x) {
  const Ints bits = as_ints(x);
  // Counting from the bits of sqrt(1/2), the exponent's field says which power of two brings the
  // mantissa into [sqrt(1/2), sqrt(2)), where the series around 1 is shortest.
  const Ints exponent = (bits - 0x3f3504f3) >> 23;
  const Floats f = as_float(bits - (exponent << 23)) - 1.0f;
  const Floats e = __builtin_convertvector(exponent, Floats);
  Floats p = splat(7.0376836292e-2f);
  p = p * f + -1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f + -1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f + -1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f + -2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const Floats f2 = f * f;
  Floats y = p * f2 * f + e * -2.12194440e-4f;
  y = y - 0.5f * f2;
  return (f + y) + e * 0.693359375f;
}

}  // namespace
}  // namespace twofour
