// A PNG of pixels without compression, so that no library is needed.

#pragma once

#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

inline void write_png(const std::string& path, const uint8_t* pixels, uint32_t width, uint32_t height, uint32_t channels) {
    const auto word = [](std::string& to, uint32_t v) {
        for (int shift = 24; shift >= 0; shift -= 8) to += char(v >> shift);
    };
    std::string lines;
    for (uint32_t y = 0; y < height; ++y) {
        lines += '\0';  // no filter
        lines.append(reinterpret_cast<const char*>(pixels) + y * width * channels, width * channels);
    }
    std::string packed = "\x78\x01";
    for (size_t at = 0; at < lines.size(); at += 65535) {
        const std::string part = lines.substr(at, 65535);
        const uint16_t size = uint16_t(part.size()), inverse = ~size;
        packed += char(at + part.size() == lines.size());
        for (const uint16_t v : {size, inverse}) packed += {char(v & 255), char(v >> 8)};
        packed += part;
    }
    uint32_t a = 1, b = 0;
    for (const uint8_t v : lines) a = (a + v) % 65521, b = (b + a) % 65521;
    word(packed, b << 16 | a);
    std::string head;
    word(head, width), word(head, height);
    head += {8, char(channels == 1 ? 0 : 2), 0, 0, 0};

    std::ofstream file(path, std::ios::binary);
    file << "\x89PNG\r\n\x1a\n";
    const std::string ends[][2] = {{"IHDR", head}, {"IDAT", packed}, {"IEND", ""}};
    for (const auto& [kind, data] : ends) {
        uint32_t crc = ~0u;
        for (const uint8_t v : kind + data) {
            crc ^= v;
            for (int bit = 0; bit < 8; ++bit) crc = crc & 1 ? 0xEDB88320u ^ (crc >> 1) : crc >> 1;
        }
        std::string size, check;
        word(size, uint32_t(data.size())), word(check, ~crc);
        file << size << kind << data << check;
    }
}
