// Thirty-two lanes in an array that the compiler vectorises as far as it may: any processor.
// Part of lanes.h, which says what they mean.
#pragma once

namespace steerfast::STEERFAST_ISA {

constexpr int kTileCells = 1;
constexpr int kDotsAtOnce = 4;

struct Lanes {
  float v[kLanes];
  static Lanes fill(float value) {
    Lanes out;
    for (float& lane : out.v) lane = value;
    return out;
  }
  friend Lanes operator+(Lanes p, const Lanes& q) {
    for (int i = 0; i < kLanes; ++i) p.v[i] += q.v[i];
    return p;
  }
  friend Lanes operator*(Lanes p, const Lanes& q) {
    for (int i = 0; i < kLanes; ++i) p.v[i] *= q.v[i];
    return p;
  }
  void spill(float* out) const { std::memcpy(out, v, sizeof v); }
};

inline void add_product(Lanes& sum, const Lanes& p, const Lanes& q) {
  for (int i = 0; i < kLanes; ++i) sum.v[i] += p.v[i] * q.v[i];
}
inline Lanes fused_square_add(const Lanes& p, const Lanes& sum) { return sum + p * p; }

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline Lanes canonical(Lanes p) {
  for (float& lane : p.v) lane = lane == lane ? lane : NAN;
  return p;
}

inline Lanes load(const float* p) {
  Lanes out;
  std::memcpy(out.v, p, sizeof out.v);
  return out;
}
inline float widen(Float16 half) {
  const uint32_t magnitude = (half.bits & 0x7fffu) << 13;
  // 2^112 moves float16's exponent bias to float32's, subnormals included; infinity and NaN keep
  // theirs.
  const uint32_t finite = bits_of(float_of(magnitude) * 0x1p112f);
  const uint32_t wide = magnitude >= 0x0f800000u ? (magnitude | 0x7f800000u) : finite;
  return float_of(wide | (half.bits & 0x8000u) << 16);
}
inline Lanes load(const Float16* p) {
  Lanes out;
  for (int i = 0; i < kLanes; ++i) out.v[i] = widen(p[i]);
  return out;
}
inline Lanes load(const BFloat16* p) {
  Lanes out;
  for (int i = 0; i < kLanes / 2; ++i) {
    out.v[i] = float_of(uint32_t{p[2 * i].bits} << 16);
    out.v[16 + i] = float_of(uint32_t{p[2 * i + 1].bits} << 16);
  }
  return out;
}

template <typename T>
inline Lanes ordered(const Lanes& p) {
  return p;
}
template <>
inline Lanes ordered<BFloat16>(const Lanes& p) {
  Lanes out;
  for (int i = 0; i < kLanes; ++i) out.v[(i & 1) * 16 + i / 2] = p.v[i];
  return out;
}
template <typename T>
inline Lanes unordered(const Lanes& p) {
  return p;
}
template <>
inline Lanes unordered<BFloat16>(const Lanes& p) {
  Lanes out;
  for (int i = 0; i < kLanes; ++i) out.v[i] = p.v[(i & 1) * 16 + i / 2];
  return out;
}

template <>
struct Rounded<BFloat16> {
  uint32_t v[kLanes];
  explicit Rounded(const Lanes& p) {
    for (int i = 0; i < kLanes; ++i) {
      const uint32_t bits = bits_of(p.v[i]);
      v[i] = (bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u;
    }
  }
  Lanes lanes() const {
    Lanes out;
    std::memcpy(out.v, v, sizeof v);
    return out;
  }
  void store(BFloat16* p) const {
    for (int i = 0; i < kLanes; ++i)
      p[i].bits = static_cast<uint16_t>(v[(i & 1) * 16 + i / 2] >> 16);
  }
};
inline uint16_t narrow(float value) {
  const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // to infinity
  if (magnitude < 0x38800000u)  // subnormal: adding 0.5 makes the FPU round to multiples of 2^-24
    return static_cast<uint16_t>(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u));
  return static_cast<uint16_t>(sign |
                               (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13);
}
template <>
struct Rounded<Float16> {
  Float16 v[kLanes];
  explicit Rounded(const Lanes& p) {
    for (int i = 0; i < kLanes; ++i) v[i].bits = narrow(p.v[i]);
  }
  Lanes lanes() const { return load(v); }
  void store(Float16* p) const { std::memcpy(p, v, sizeof v); }
};

inline float sum(const Lanes& p) {
  float lane[kLanes];
  p.spill(lane);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
}

}  // namespace steerfast::STEERFAST_ISA
