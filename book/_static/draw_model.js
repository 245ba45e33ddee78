// The image encoder of the two tiny models, after cibr/models/tiny.py. No library. A linear map
// has a row for each output, a feature map a row for each place; both are Float32Arrays, row after
// row.
(() => {
  "use strict";
  const EPSILON = 1e-5; // of LayerNorm

  // n rows of x times the rows of the weight, four outputs at a time.
  const linear = (x, n, weight) => {
    const k = x.length / n;
    const m = weight.length / k;
    const y = new Float32Array(n * m);
    for (let j = 0; j < m; j += 4) {
      const w0 = j * k;
      const w1 = w0 + k;
      const w2 = w1 + k;
      const w3 = w2 + k;
      for (let i = 0; i < n; i += 1) {
        let [a, b, c, d] = [0, 0, 0, 0];
        for (let l = 0; l < k; l += 1) {
          const value = x[i * k + l];
          a += value * weight[w0 + l];
          b += value * weight[w1 + l];
          c += value * weight[w2 + l];
          d += value * weight[w3 + l];
        }
        y.set([a, b, c, d], i * m + j);
      }
    }
    return y;
  };

  const layerNorm = (x, n, weight, bias) => {
    const k = x.length / n;
    const y = new Float32Array(x.length);
    for (let start = 0; start < x.length; start += k) {
      let mean = 0;
      let variance = 0;
      for (let i = 0; i < k; i += 1) mean += x[start + i] / k;
      for (let i = 0; i < k; i += 1) variance += (x[start + i] - mean) ** 2 / k;
      const scale = 1 / Math.sqrt(variance + EPSILON);
      for (let i = 0; i < k; i += 1)
        y[start + i] = (x[start + i] - mean) * scale * weight[i] + bias[i];
    }
    return y;
  };

  const relu = (x) => x.map((value) => Math.max(0, value));

  // The product of a vector with a row of a matrix.
  const dot = (x, rows, row = 0) => {
    let sum = 0;
    for (let i = 0; i < x.length; i += 1) sum += x[i] * rows[row * x.length + i];
    return sum;
  };

  // A convolution is a linear map of the values under the kernel at every place.
  const convolve = (x, side, size, stride, weight) => {
    const channels = x.length / side ** 2;
    const out = side / stride;
    const pad = (size - 1) / 2;
    const patches = new Float32Array(out ** 2 * size ** 2 * channels);
    let at = 0;
    for (let place = 0; place < out ** 2; place += 1) {
      for (let tap = 0; tap < size ** 2; tap += 1, at += channels) {
        const row = Math.floor(place / out) * stride - pad + Math.floor(tap / size);
        const column = (place % out) * stride - pad + (tap % size);
        if (row < 0 || column < 0 || row >= side || column >= side) continue;
        const from = (row * side + column) * channels;
        patches.set(x.subarray(from, from + channels), at);
      }
    }
    return linear(patches, out ** 2, weight);
  };

  // 32 x 32 grey levels, 0 to 255, to a unit vector; weights by their names in the state dict.
  const embed = (weights, grey) => {
    const weight = (name) => weights[`image_tower.${name}.weight`];
    const norm = (x, n, name) => layerNorm(x, n, weight(name), weights[`image_tower.${name}.bias`]);
    let x = Float32Array.from(grey, (level) => level / 127.5 - 1);
    x = relu(norm(convolve(x, 32, 5, 2, weight("0")), 256, "1"));
    x = relu(norm(convolve(x, 16, 3, 2, weight("3")), 64, "4"));
    const skip = convolve(x, 8, 1, 2, weight("6.skip"));
    x = relu(norm(convolve(x, 8, 3, 2, weight("6.conv1")), 16, "6.norm1"));
    x = norm(convolve(x, 4, 3, 1, weight("6.conv2")), 16, "6.norm2");
    x = relu(x.map((value, i) => value + skip[i]));
    x = layerNorm(x, 1, weights["image_head.0.weight"], weights["image_head.0.bias"]);
    x = linear(x, 1, weights["image_head.2.weight"]);
    const length = Math.sqrt(dot(x, x));
    return x.map((value) => value / length);
  };

  // The data as cibr_book.pages.draw packs it: a length, a header in JSON, and the arrays that it
  // lists, of bytes or of levels with a scale for each row.
  const unpack = async (bytes) => {
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const buffer = await new Response(stream).arrayBuffer();
    let at = 4 + new DataView(buffer).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, at - 4)));
    const take = (n) => buffer.slice(at, (at += n));
    const weights = Object.fromEntries(header.models.map((name) => [name, {}]));
    for (const [name, rows, columns] of header.arrays) {
      if (name === "pixels") {
        header.pixels = new Uint8Array(take(rows * columns));
        continue;
      }
      const scales = new Float32Array(take(4 * rows));
      const levels = new Int16Array(take(2 * rows * columns));
      const [model, key] = name.split("/");
      weights[model][key] = Float32Array.from(
        levels,
        (level, i) => level * scales[Math.floor(i / columns)],
      );
    }
    return { ...header, weights };
  };

  // The cosine of an image with each of n names.
  const cosines = (weights, grey, n) => {
    const vector = embed(weights, grey);
    return Array.from({ length: n }, (_, i) => dot(vector, weights.names, i));
  };

  globalThis.cibrModel = { cosines, unpack };
})();
