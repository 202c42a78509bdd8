// GIF89a of frames that share a palette: grey, or 6 x 7 x 6 levels of red, green and blue.

export function encodeGif(frames, centiseconds) {
  const { width, height } = frames[0];
  const grey = frames.every(({ data }) => {
    for (let i = 0; i < data.length; i += 4) if (data[i] !== data[i + 1] || data[i] !== data[i + 2]) return false;
    return true;
  });
  const palette = new Uint8Array(768);
  for (let i = 0; i < 256; i++) {
    const colour = grey ? [i, i, i] : [Math.floor(i / 42) % 6 * 51, Math.floor(i / 6) % 7 * 42.5, i % 6 * 51];
    palette.set(colour, i * 3);
  }
  const out = [];
  const word = (n) => out.push(n & 255, n >> 8);
  const text = (s) => { for (const c of s) out.push(c.charCodeAt(0)); };
  text("GIF89a");
  word(width); word(height);
  out.push(0xf7, 0, 0, ...palette);
  out.push(0x21, 0xff, 11);
  text("NETSCAPE2.0");
  out.push(3, 1, 0, 0, 0);
  for (const { data } of frames) {
    out.push(0x21, 0xf9, 4, 0);
    word(centiseconds);
    out.push(0, 0, 0x2c, 0, 0, 0, 0);
    word(width); word(height);
    out.push(0, 8);
    const pixels = new Uint8Array(width * height);
    for (let p = 0, i = 0; p < pixels.length; p++, i += 4) {
      pixels[p] = grey ? data[i] : Math.round(data[i] / 51) * 42 + Math.round(data[i + 1] / 42.5) * 6 + Math.round(data[i + 2] / 51);
    }
    const packed = lzw(pixels);
    for (let i = 0; i < packed.length; i += 255) {
      const part = packed.slice(i, i + 255);
      out.push(part.length);
      for (const b of part) out.push(b);
    }
    out.push(0);
  }
  out.push(0x3b);
  return new Uint8Array(out);
}

// LZW of bytes with codes of 9 to 12 bits.
function lzw(pixels) {
  const out = [];
  let bits = 0, count = 0, size = 9, next = 258, table = new Map();
  const put = (code) => {
    bits |= code << count;
    count += size;
    while (count >= 8) { out.push(bits & 255); bits >>>= 8; count -= 8; }
  };
  put(256);
  let prefix = pixels[0];
  for (let i = 1; i < pixels.length; i++) {
    const key = prefix << 8 | pixels[i];
    const found = table.get(key);
    if (found !== undefined) { prefix = found; continue; }
    put(prefix);
    if (next === 4096) {
      put(256);
      table = new Map();
      next = 258;
      size = 9;
    } else {
      if (next === 1 << size) size++;
      table.set(key, next++);
    }
    prefix = pixels[i];
  }
  put(prefix);
  put(257);
  if (count) out.push(bits & 255);
  return out;
}
