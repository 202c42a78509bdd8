// The noise of an image as docs/randomness.md defines it: Philox4x32-10, keys of SplitMix64, normals of Box and Muller.

#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

inline uint64_t mix64(uint64_t v) {
    v = (v ^ (v >> 30)) * 0xBF58476D1CE4E5B9u;
    v = (v ^ (v >> 27)) * 0x94D049BB133111EBu;
    return v ^ (v >> 31);
}

inline uint32_t mix32(uint32_t v) {
    v = (v ^ (v >> 16)) * 0x85EBCA6Bu;
    v = (v ^ (v >> 13)) * 0xC2B2AE35u;
    return v ^ (v >> 16);
}

// The key of image `index` of a run.
inline uint64_t image_seed(uint64_t seed, uint64_t index, uint64_t stream = 0) {
    const uint64_t run = mix64((seed ^ stream) + 0x9E3779B97F4A7C15u);
    const uint32_t low = mix32(mix32(uint32_t(index ^ run)) ^ uint32_t(run >> 32));
    return (mix64((run ^ index) + 0x9E3779B97F4A7C15u) >> 33) << 32 | low;
}

inline std::array<uint32_t, 4> philox(uint32_t position, uint32_t draw, uint64_t seed) {
    std::array<uint32_t, 4> c = {position, draw, 0, 0};
    uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
    for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
        const uint64_t first = uint64_t(c[0]) * 0xD2511F53u, second = uint64_t(c[2]) * 0xCD9E8D57u;
        c = {uint32_t(second >> 32) ^ c[1] ^ k0, uint32_t(second), uint32_t(first >> 32) ^ c[3] ^ k1, uint32_t(first)};
    }
    return c;
}

// Unit normals: `size` numbers of each of the first draws.
inline std::vector<float> unit_noise(uint64_t seed, int64_t draws, int64_t size) {
    std::vector<float> all(draws * size);
    for (int64_t i = 0; i < draws * size; ++i) {
        const int64_t at = i % size;
        const auto words = philox(uint32_t(at / 4), uint32_t(i / size), seed);
        const int pair = at % 4 / 2 * 2;
        const double r = std::sqrt(-2 * std::log((words[pair] + 0.5) * 0x1p-32));
        const double t = words[pair + 1] * (2 * 3.141592653589793 * 0x1p-32);
        all[i] = float(r * (at % 2 ? std::sin(t) : std::cos(t)));
    }
    return all;
}
