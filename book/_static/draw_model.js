// The two tiny models of the page "draw": their tokenizer and forward passes, after
// cibr/models/towers.py. No library. A linear map has a row for each output, a feature map a row
// for each place; both are Float32Arrays, row after row.
(() => {
  "use strict";
  const SIDE = 32;
  const WIDTH = 128; // of the text tower
  const N_HEADS = 4;
  const MAX_TOKENS = 64;
  const EPSILON = 1e-5; // of LayerNorm

  // n rows of x times the rows of the weight, four outputs at a time, plus the bias.
  const linear = (x, n, { weight, bias }) => {
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
        const at = i * m + j;
        y[at] = a;
        y[at + 1] = b;
        y[at + 2] = c;
        y[at + 3] = d;
      }
    }
    if (bias) for (let i = 0; i < y.length; i += 1) y[i] += bias[i % m];
    return y;
  };

  const layerNorm = (x, n, { weight, bias }) => {
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

  // The error function is 7.1.26 of Abramowitz and Stegun, right to 1.5e-7.
  const SERIES = [1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592];
  const gelu = (x) =>
    x.map((value) => {
      const z = Math.abs(value) * Math.SQRT1_2;
      const t = 1 / (1 + 0.3275911 * z);
      const rest = SERIES.reduce((sum, term) => sum * t + term, 0) * t * Math.exp(-z * z);
      return 0.5 * value * (1 + Math.sign(value) * (1 - rest));
    });

  const add = (x, y) => x.map((value, i) => value + y[i]);

  const meanOfRows = (x, n) => {
    const mean = new Float32Array(x.length / n);
    for (let i = 0; i < x.length; i += 1) mean[i % mean.length] += x[i] / n;
    return mean;
  };

  const cosine = (x, y, from = 0) => {
    let sum = 0;
    for (let i = 0; i < x.length; i += 1) sum += x[i] * y[from + i];
    return sum;
  };

  const unit = (x) => {
    const norm = Math.sqrt(cosine(x, x));
    return x.map((value) => value / norm);
  };

  // The values under a kernel at every place: a convolution is a linear map of them.
  const patches = (x, side, size, stride) => {
    const channels = x.length / side ** 2;
    const out = side / stride;
    const pad = (size - 1) / 2;
    const rows = new Float32Array(out ** 2 * size ** 2 * channels);
    let at = 0;
    for (let place = 0; place < out ** 2; place += 1) {
      for (let tap = 0; tap < size ** 2; tap += 1, at += channels) {
        const row = Math.floor(place / out) * stride - pad + Math.floor(tap / size);
        const column = (place % out) * stride - pad + (tap % size);
        if (row < 0 || column < 0 || row >= side || column >= side) continue;
        const from = (row * side + column) * channels;
        for (let i = 0; i < channels; i += 1) rows[at + i] = x[from + i];
      }
    }
    return rows;
  };
  const convolve = (x, side, size, stride, layer) =>
    linear(patches(x, side, size, stride), (side / stride) ** 2, layer);

  // Self-attention from rows of queries, keys and values.
  const attend = (qkv, n) => {
    const dim = WIDTH / N_HEADS;
    const part = (i, which, head) => {
      const start = (3 * i + which) * WIDTH + head * dim;
      return qkv.subarray(start, start + dim);
    };
    const out = new Float32Array(n * WIDTH);
    const weights = new Float64Array(n);
    for (let head = 0; head < N_HEADS; head += 1) {
      for (let i = 0; i < n; i += 1) {
        const query = part(i, 0, head);
        let sum = 0;
        for (let j = 0; j < n; j += 1) {
          weights[j] = Math.exp(cosine(query, part(j, 1, head)) / Math.sqrt(dim));
          sum += weights[j];
        }
        for (let j = 0; j < n; j += 1) {
          const value = part(j, 2, head);
          const at = i * WIDTH + head * dim;
          for (let c = 0; c < dim; c += 1) out[at + c] += (weights[j] / sum) * value[c];
        }
      }
    }
    return out;
  };

  // A model from its arrays, by the names that they have in the backbone's state dict.
  const encoder = (arrays) => {
    const layer = (name, joint = ".") => ({
      weight: arrays[`${name}${joint}weight`],
      bias: arrays[`${name}${joint}bias`],
    });
    const project = (pooled, head) =>
      unit(linear(layerNorm(pooled, 1, layer(`${head}.0`)), 1, layer(`${head}.2`)));

    // 32 x 32 grey levels, 0 to 255, to a unit vector.
    const image = (grey) => {
      const tower = (name) => layer(`image_tower.${name}`);
      let x = Float32Array.from(grey, (level) => level / 127.5 - 1);
      x = relu(layerNorm(convolve(x, SIDE, 5, 2, tower("0")), 256, tower("1")));
      x = relu(layerNorm(convolve(x, 16, 3, 2, tower("3")), 64, tower("4")));
      const skip = convolve(x, 8, 1, 2, tower("6.skip"));
      x = relu(layerNorm(convolve(x, 8, 3, 2, tower("6.conv1")), 16, tower("6.norm1")));
      x = layerNorm(convolve(x, 4, 3, 1, tower("6.conv2")), 16, tower("6.norm2"));
      return project(relu(add(x, skip)), "image_head");
    };

    // Token ids to a unit vector. The mean is taken before the last linear map: they commute.
    const text = (ids) => {
      const n = ids.length;
      const block = (name, joint) => layer(`text_tower.layers.layers.0.${name}`, joint);
      const tokens = arrays["text_tower.tokens.weight"];
      const positions = arrays["text_tower.positions"];
      let x = new Float32Array(n * WIDTH);
      ids.forEach((id, i) => x.set(tokens.subarray(id * WIDTH, (id + 1) * WIDTH), i * WIDTH));
      x = add(x, positions);
      const qkv = linear(layerNorm(x, n, block("norm1")), n, block("self_attn", ".in_proj_"));
      x = add(x, linear(attend(qkv, n), n, block("self_attn.out_proj")));
      const hidden = gelu(linear(layerNorm(x, n, block("norm2")), n, block("linear1")));
      const added = linear(meanOfRows(hidden, n), 1, block("linear2"));
      return project(add(meanOfRows(x, n), added), "text_head");
    };
    return { image, text };
  };

  // Every byte as a letter: those that cannot be printed are the characters from 256 on.
  const byteLetters = () => {
    let next = 256;
    return Array.from({ length: 256 }, (_, byte) => {
      const isPrintable = (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
      return String.fromCharCode(isPrintable ? byte : next++);
    });
  };

  // Words with the space before them, numbers, other signs, and white space.
  const PIECES = new RegExp(
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\p{White_Space}\\p{L}\\p{N}]+" +
      "|\\p{White_Space}+(?!\\P{White_Space})|\\p{White_Space}+",
    "gu",
  );

  // Byte-level BPE of lower-case text, as the models' tokenizer.json describes it.
  const tokenizer = ({ vocabulary, merges, end }) => {
    const ids = new Map(vocabulary.map((token, id) => [token, id]));
    const ranks = new Map(merges.map((merge, rank) => [merge, rank]));
    const letters = byteLetters();

    const merged = (piece) => {
      let parts = Array.from(new TextEncoder().encode(piece), (byte) => letters[byte]);
      for (;;) {
        const rank = (i) => ranks.get(`${parts[i]} ${parts[i + 1]}`) ?? Infinity;
        const best = Math.min(...parts.slice(1).map((_, i) => rank(i)));
        if (best === Infinity) return parts;
        const joined = [];
        for (let i = 0; i < parts.length; i += 1)
          joined.push(rank(i) === best ? parts[i] + parts[++i] : parts[i]);
        parts = joined;
      }
    };
    const words = (text) => {
      // Letter by letter, since a whole word would give a capital sigma at its end another form.
      const lower = Array.from(text.normalize("NFC"), (letter) => letter.toLowerCase()).join("");
      const pieces = (lower.startsWith(" ") ? lower : ` ${lower}`).match(PIECES);
      return pieces.flatMap(merged).map((token) => ids.get(token));
    };
    // Where the text names a special token, it stands for that token.
    return (text) => {
      const parts = text.split(/(<pad>|<end>)/).filter((part) => part !== "");
      const found = parts.flatMap((part) =>
        /^<(pad|end)>$/.test(part) ? ids.get(part) : words(part),
      );
      return [...found.slice(0, MAX_TOKENS - 1), end];
    };
  };

  // The data from its compressed parts, as cibr_book.pages.draw packs it: a length, a header in JSON, and
  // the arrays that it lists. Rows are levels times a scale; low bytes come before all high ones.
  const unpack = async (parts) => {
    const stream = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate"));
    const buffer = await new Response(stream).arrayBuffer();
    let at = 4 + new DataView(buffer).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, at - 4)));
    const take = (n) => new Uint8Array(buffer.slice(at, (at += n)));
    const arrays = {};
    for (const [name, kind, rows, columns] of header.arrays) {
      if (kind === "bytes") {
        arrays[name] = take(rows * columns);
        continue;
      }
      const scales = new Float32Array(take(4 * rows).buffer);
      const low = take(rows * columns);
      const high = new Int8Array(take(rows * columns).buffer);
      const values = new Float32Array(rows * columns);
      for (let i = 0; i < values.length; i += 1)
        values[i] = scales[Math.floor(i / columns)] * (256 * high[i] + low[i]);
      arrays[name] = values;
    }
    return { ...header, arrays };
  };

  globalThis.cibrModel = { cosine, encoder, tokenizer, unpack };
})();
