// The page "draw": what two models make of a drawing or of a printed character, and the characters
// that a text finds. The models run here, see draw_model.js. No library, no other host.
(() => {
  "use strict";
  const box = document.getElementById("draw-page");
  if (!box) return;
  const at = (name) => document.getElementById(`draw-${name}`);
  const { scripts, guides } = JSON.parse(at("data").textContent);
  const SIDE = 32;
  const SHIFT = 2; // px of a mask beyond the image, on each side
  const N_NAMES = 5;
  const N_FOUND = 8;
  const N_COLUMNS = 40; // of the sheet of tiles
  const PENS = [2.4, 4]; // px of the 32: regular and bold
  const SHEAR = [0, 0.2]; // upright and oblique
  const PLAIN = { typeface: 2, weight: 0, slant: 0, size: 1, ink: 0, across: 0, down: 0 };
  const LEVELS = ["typeface", "weight", "slant", "size", "ink"];
  const N_SEEN = 2; // typefaces of the training set, the first
  const APPLIES = {
    drawing: ["weight", "slant", "size", "ink", "position"],
    printed: ["typeface", "weight", "slant", "size", "ink", "position"],
    found: ["ink", "position"],
  };
  const EXAMPLES = ["black heart suit", "arrow", "letter a with acute", "musical note", "square"];

  let models = null; // once loaded
  let world = null; // names, characters, images
  let loading = null;
  let source = { kind: "drawing", index: -1 };
  let strokes = [];
  let drawn = null; // the stroke under the pointer
  const pen = { x: 16, y: 16, down: null };

  const make = (tag, attributes, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  const pause = () => new Promise((done) => setTimeout(done));
  const once = (task) => {
    let waits = false;
    return () => {
      if (waits) return;
      waits = true;
      requestAnimationFrame(() => {
        waits = false;
        task();
      });
    };
  };
  // Spoken after a pause, so that a screen reader is not told of every step.
  const later = (element) => {
    let timer = 0;
    return (text) => {
      clearTimeout(timer);
      timer = setTimeout(() => {
        element.textContent = text;
      }, 400);
    };
  };
  const say = later(at("said"));
  const sayFound = later(at("found-said"));

  // ---- the image
  const small = at("seen").getContext("2d", { willReadFrequently: true });
  const large = at("canvas").getContext("2d");
  const UNIT = at("canvas").width / SIDE;

  const chosen = (name) => Number(at("factors").querySelector(`[name=draw-${name}]:checked`).value);
  const style = () => ({
    ...Object.fromEntries(LEVELS.map((f) => [f, chosen(f)])),
    across: Number(at("across").value),
    down: Number(at("down").value),
  });
  // Every combination of typeface, weight, slant, size and ink, in the centre.
  const allStyles = () => {
    let styles = [PLAIN];
    for (const name of LEVELS) {
      const n = at("factors").querySelectorAll(`[name=draw-${name}]`).length;
      styles = styles.flatMap((s) => Array.from({ length: n }, (_, i) => ({ ...s, [name]: i })));
    }
    return styles;
  };
  const isPlain = (s) =>
    APPLIES[source.kind].every((factor) =>
      factor === "position" ? s.across === 0 && s.down === 0 : s[factor] === PLAIN[factor],
    );

  const placing = (s) => {
    const scale = [18, 24, 27][s.size] / 24;
    return new DOMMatrix([1, 0, 0, 1, 16 + s.across, 16 + s.down])
      .multiply(new DOMMatrix([scale, 0, -SHEAR[s.slant] * scale, scale, 0, 0]))
      .translate(-16, -16);
  };
  const paint = (context, unit, s) => {
    const [paper, ink] = s.ink ? ["black", "white"] : ["white", "black"];
    context.resetTransform();
    context.fillStyle = paper;
    context.fillRect(0, 0, SIDE * unit, SIDE * unit);
    context.setTransform(new DOMMatrix().scale(unit).multiply(placing(s)));
    Object.assign(context, {
      strokeStyle: ink,
      lineWidth: PENS[s.weight],
      lineCap: "round",
      lineJoin: "round",
    });
    for (const stroke of strokes) {
      context.beginPath();
      stroke.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
      if (stroke.length === 1) context.lineTo(stroke[0][0] + 0.01, stroke[0][1]);
      context.stroke();
    }
  };

  // The ink of a printed character: cut from a wider square, which moves it.
  const inkOf = (s) => {
    const printed = source.kind === "printed";
    const side = printed ? SIDE + 2 * SHIFT : SIDE;
    const pad = printed ? SHIFT : 0;
    const { styled, typefaces, weights, slants, sizes, arrays } = world;
    let which = source.index;
    if (printed) {
      const levels = [
        [typefaces, s.typeface],
        [weights, s.weight],
        [slants, s.slant],
        [sizes, s.size],
      ];
      for (const [all, one] of levels) which = which * all.length + one;
    }
    const from = (printed ? arrays.masks : arrays.pixels).subarray(
      which * side ** 2,
      (which + 1) * side ** 2,
    );
    return Uint8Array.from({ length: SIDE ** 2 }, (_, i) => {
      const row = Math.floor(i / SIDE) + pad - s.down;
      const column = (i % SIDE) + pad - s.across;
      if (row < 0 || column < 0 || row >= side || column >= side) return 0;
      return printed ? from[row * side + column] : 255 - from[row * side + column];
    });
  };
  const greyOf = (s) => {
    if (source.kind !== "drawing") return inkOf(s).map((ink) => (s.ink ? ink : 255 - ink));
    paint(small, 1, s);
    return small.getImageData(0, 0, SIDE, SIDE).data.filter((_, i) => i % 4 === 0);
  };
  const imageData = (grey) =>
    new ImageData(
      Uint8ClampedArray.from({ length: 4 * grey.length }, (_, i) =>
        i % 4 === 3 ? 255 : grey[i >> 2],
      ),
      SIDE,
    );

  const showImage = (grey, s) => {
    small.putImageData(imageData(grey), 0, 0);
    large.resetTransform();
    if (source.kind === "drawing") {
      paint(large, UNIT, s);
      showGuides();
    } else {
      large.imageSmoothingEnabled = false;
      large.drawImage(at("seen"), 0, 0, SIDE * UNIT, SIDE * UNIT);
    }
    if (document.activeElement === at("canvas") && pen.seen) showPen();
  };
  // Where capitals, small letters and the line lie in the images of the training set.
  const showGuides = () => {
    large.resetTransform();
    Object.assign(large, { strokeStyle: "#8899aa", lineWidth: 1 });
    large.setLineDash([4, 8]);
    for (const y of guides) {
      large.beginPath();
      large.moveTo(0, y * UNIT);
      large.lineTo(SIDE * UNIT, y * UNIT);
      large.stroke();
    }
    large.setLineDash([]);
  };
  const showPen = () => {
    const { x, y } = placing(style()).transformPoint(pen);
    large.resetTransform();
    Object.assign(large, { strokeStyle: pen.down ? "#d55e00" : "#0072b2", lineWidth: 4 });
    large.beginPath();
    large.arc(x * UNIT, y * UNIT, 14, 0, 2 * Math.PI);
    large.stroke();
  };

  // ---- what the models say
  const best = (cosines, n) => {
    const order = [];
    for (let k = 0; k < n; k += 1) {
      let top = -1;
      cosines.forEach((value, i) => {
        if (!order.includes(i) && (top < 0 || value > cosines[top])) top = i;
      });
      order.push(top);
    }
    return order;
  };
  // From 1; a tie counts against the model.
  const rankOf = (cosines, right) =>
    cosines.filter((value, i) => i !== right && value >= cosines[right]).length + 1;
  const cosinesOf = (vector, rows) =>
    Float64Array.from({ length: rows.length / vector.length }, (_, i) =>
      cibrModel.cosine(vector, rows, i * vector.length),
    );

  const rightName = () => {
    if (source.kind === "drawing") return -1;
    return source.kind === "found"
      ? source.index
      : world.characters.indexOf(world.styled[source.index]);
  };
  const tile = (element, i) => {
    const n_rows = Math.ceil(world.names.length / N_COLUMNS);
    const column = (100 * (i % N_COLUMNS)) / (N_COLUMNS - 1);
    const row = (100 * Math.floor(i / N_COLUMNS)) / (n_rows - 1);
    element.style.background = `white var(--draw-sheet) ${column}% ${row}% / ${100 * N_COLUMNS}%`;
  };

  const answer = (model, grey, plain) => {
    const vector = model.image(grey);
    const cosines = cosinesOf(vector, model.names);
    const order = best(cosines, N_NAMES);
    const right = rightName();
    const found = { cosines, order, rank: right < 0 ? 0 : rankOf(cosines, right) };
    if (plain) {
      const before = answerToPlain(model, plain);
      found.kept = cibrModel.cosine(vector, before.vector);
      found.before = before.first;
    }
    return found;
  };
  // Kept until the plain image changes: half the time while a style is moved.
  const answerToPlain = (model, grey) => {
    if (!model.plain || grey.some((level, i) => level !== model.plain.grey[i])) {
      const vector = model.image(grey);
      model.plain = { grey, vector, first: best(cosinesOf(vector, model.names), 1)[0] };
    }
    return model.plain;
  };

  const showAnswer = (model, found) => {
    const { section, note } = model;
    const right = rightName();
    const notes = [];
    if (found.rank) notes.push(found.rank === 1 ? "right" : `right name at rank ${found.rank}`);
    if (found.kept !== undefined) {
      notes.push(`cosine with the plain image ${found.kept.toFixed(2)}`);
      notes.push(
        found.before === found.order[0]
          ? "first name unchanged"
          : `first name was ${world.names[found.before]}`,
      );
    }
    note.textContent = notes.join("; ");
    [...section.querySelectorAll("li")].forEach((row, k) => {
      const [picture, name, number, bar] = row.children;
      const i = found.order[k];
      tile(picture, i);
      name.textContent = world.names[i];
      number.textContent = found.cosines[i].toFixed(2);
      bar.style.width = `${100 * Math.max(0, found.cosines[i])}%`;
      row.classList.toggle("right", i === right);
    });
  };

  const described = (s) => {
    if (source.kind === "drawing") return "This drawing";
    const right = world.characters[rightName()];
    return isPlain(s) ? `“${right}”` : `“${right}” in this style`;
  };
  const update = once(() => {
    const s = style();
    const grey = greyOf(s);
    showImage(grey, s);
    if (!models) return;
    const isEmpty = source.kind === "drawing" && !strokes.length;
    at("names").hidden = isEmpty;
    at("hint").textContent = isEmpty ? "Draw, or take a character." : "";
    if (isEmpty) return say("");
    const plain = isPlain(s) ? null : greyOf(PLAIN);
    if (plain) showImage(grey, s); // the small canvas was painted on
    const said = models.map((model) => {
      const found = answer(model, grey, plain);
      showAnswer(model, found);
      const rank = found.rank > 1 ? ` (the right name is at rank ${found.rank})` : "";
      return `${model.name}: ${world.names[found.order[0]]}${rank}`;
    });
    say(`${described(s)}. ${said.join(". ")}.`);
  });

  // ---- controls
  const choose = (kind, index = -1) => {
    source = { kind, index };
    if (kind !== "drawing") strokes = [];
    at("pick").value = kind === "printed" ? index : "";
    at("all").disabled = kind !== "printed";
    at("tally").textContent = "";
    for (const set of at("factors").children)
      set.disabled = !APPLIES[kind].includes(set.dataset.factor);
    update();
  };
  const plain = () => {
    for (const name of LEVELS)
      at("factors").querySelector(`[name=draw-${name}][value="${PLAIN[name]}"]`).checked = true;
    at("across").value = 0;
    at("down").value = 0;
    update();
  };

  const start = (point) => {
    if (source.kind !== "drawing") choose("drawing");
    strokes.push([point]);
    load();
    update();
    return strokes.at(-1);
  };
  const place = (event) => {
    const { left, top, width, height } = at("canvas").getBoundingClientRect();
    const { x, y } = placing(style())
      .inverse()
      .transformPoint(
        new DOMPoint(
          ((event.clientX - left) / width) * SIDE,
          ((event.clientY - top) / height) * SIDE,
        ),
      );
    return [x, y];
  };
  const canvas = at("canvas");
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    canvas.setPointerCapture(event.pointerId);
    pen.seen = false;
    pen.down = null;
    drawn = start(place(event));
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!drawn) return;
    drawn.push(...(event.getCoalescedEvents?.() ?? [event]).map(place));
    update();
  });
  for (const name of ["pointerup", "pointercancel"])
    canvas.addEventListener(name, () => {
      drawn = null;
    });

  const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  canvas.addEventListener("keydown", (event) => {
    const move = MOVES[event.key];
    if (!move && event.key !== " ") return;
    event.preventDefault();
    pen.seen = true;
    if (move) {
      pen.x = Math.min(SIDE, Math.max(0, pen.x + move[0]));
      pen.y = Math.min(SIDE, Math.max(0, pen.y + move[1]));
      pen.down?.push([pen.x, pen.y]);
    } else pen.down = pen.down ? null : start([pen.x, pen.y]);
    at("pen").textContent = `Pen ${pen.down ? "down" : "up"}, ${pen.x} across, ${pen.y} down`;
    update();
  });
  for (const name of ["focus", "blur"]) canvas.addEventListener(name, () => update());

  const erase = (rest) => {
    pen.down = null;
    if (source.kind !== "drawing") choose("drawing");
    strokes = rest;
    update();
  };
  at("undo").addEventListener("click", () => erase(strokes.slice(0, -1)));
  at("clear").addEventListener("click", () => erase([]));
  at("pick").addEventListener("change", async () => {
    const { value } = at("pick");
    await load();
    if (models) choose(value === "" ? "drawing" : "printed", Number(value));
  });
  at("factors").addEventListener("input", update);
  at("plain").addEventListener("click", plain);

  at("all").addEventListener("click", async () => {
    const { index } = source;
    const right = rightName();
    const counts = models.map(() => [0, 0]);
    const styles = allStyles();
    at("all").disabled = true;
    for (const [i, one] of styles.entries()) {
      if (i % 4 === 0) await pause();
      if (source.kind !== "printed" || source.index !== index) return;
      const grey = greyOf(one);
      models.forEach((model, m) => {
        const isFirst = rankOf(cosinesOf(model.image(grey), model.names), right) === 1;
        counts[m][one.typeface < N_SEEN ? 0 : 1] += isFirst;
      });
    }
    at("all").disabled = false;
    const half = styles.length / 2;
    const told = (k) =>
      models
        .map((model, m) => `${counts[m][k]} of ${half} styles with ${model.name}`)
        .join(" and ");
    at("tally").textContent =
      `“${world.styled[index]}”, centred: the right name comes first in ${told(0)} in the ` +
      `typefaces of the training set, sans and mono, and in ${told(1)} in serif and stix.`;
  });

  // ---- what a text finds
  const find = once(() => {
    const text = at("query").value.trim();
    if (!models) return;
    if (!text) {
      at("found").replaceChildren();
      return sayFound("");
    }
    const right = world.names.indexOf(text.toLowerCase());
    const ranks = [];
    at("found").replaceChildren(
      ...models.map((model) => {
        const cosines = cosinesOf(model.text(world.tokenize(text)), model.images);
        if (right >= 0) ranks.push(`${rankOf(cosines, right)} for ${model.name}`);
        const tiles = best(cosines, N_FOUND).map((i) => foundTile(i, i === right));
        return make("section", {}, make("h3", {}, model.name), make("ol", {}, ...tiles));
      }),
    );
    sayFound(
      right < 0
        ? `“${text}” is not a name of the set: no character is marked as right.`
        : `The character with this name is at rank ${ranks.join(" and ")}.`,
    );
  });
  const foundTile = (i, isRight) => {
    const picture = make("span", { class: "draw-picture" });
    tile(picture, i);
    const button = make(
      "button",
      { type: "button" },
      picture,
      `${isRight ? "✓ " : ""}${world.names[i]}`,
    );
    button.addEventListener("click", () => {
      const printed = [...world.styled].indexOf(world.characters[i]);
      plain();
      choose(printed < 0 ? "found" : "printed", printed < 0 ? i : printed);
      canvas.scrollIntoView({ block: "center" });
    });
    return make("li", isRight ? { class: "right" } : {}, button);
  };
  const search = async () => {
    await load();
    find();
  };
  at("query").addEventListener("input", search);
  at("examples").append(
    "such as ",
    ...EXAMPLES.map((text) => {
      const button = make("button", { type: "button", class: "draw-button" }, text);
      button.addEventListener("click", () => {
        at("query").value = text;
        search();
      });
      return button;
    }),
  );

  // ---- loading
  const addScript = (address) =>
    new Promise((done, fail) => {
      const script = make("script", { src: address });
      script.onload = done;
      script.onerror = () => fail(new Error(address));
      document.head.append(script);
    });
  const sheet = async () => {
    const { pixels } = world.arrays;
    const canvas = make("canvas", {
      width: SIDE * N_COLUMNS,
      height: SIDE * Math.ceil(world.names.length / N_COLUMNS),
    });
    const context = canvas.getContext("2d");
    world.names.forEach((_, i) => {
      const grey = pixels.subarray(i * SIDE ** 2, (i + 1) * SIDE ** 2);
      context.putImageData(
        imageData(grey),
        SIDE * (i % N_COLUMNS),
        SIDE * Math.floor(i / N_COLUMNS),
      );
    });
    const blob = await new Promise((done) => canvas.toBlob(done));
    box.style.setProperty("--draw-sheet", `url("${URL.createObjectURL(blob)}")`);
  };
  const panel = (name) => {
    const row = () =>
      make(
        "li",
        {},
        make("span", { class: "draw-picture" }),
        make("span", {}),
        make("output", {}),
        make("i", {}),
      );
    const note = make("small", {});
    const rows = Array.from({ length: N_NAMES }, row);
    const section = make("section", {}, make("h3", {}, name, note), make("ol", {}, ...rows));
    at("names").append(section);
    return { section, note };
  };
  const build = async (name, progress) => {
    const arrays = {};
    for (const [key, value] of Object.entries(world.arrays))
      if (key.startsWith(`${name}/`)) arrays[key.slice(name.length + 1)] = value;
    const model = { name, ...cibrModel.encoder(arrays), images: arrays.images };
    const rows = [];
    let last = performance.now();
    for (const text of world.names) {
      rows.push(model.text(world.tokenize(text)));
      if (performance.now() - last > 25) {
        progress(rows.length / world.names.length);
        await pause();
        last = performance.now();
      }
    }
    model.names = new Float32Array(rows.length * rows[0].length);
    rows.forEach((row, i) => model.names.set(row, i * row.length));
    return model;
  };
  const fetchAll = async () => {
    const parts = [];
    let n_loaded = 0;
    window.cibrPart = (i, text) => {
      parts[i] = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    };
    await Promise.all(
      scripts.map(async (address) => {
        await addScript(address);
        n_loaded += 1;
        at("progress").value = (0.6 * n_loaded) / scripts.length;
      }),
    );
    return cibrModel.unpack(parts);
  };
  const load = () => {
    loading ??= (async () => {
      const wasFocused = document.activeElement === at("load");
      at("load").disabled = true;
      at("progress").hidden = false;
      at("status").textContent = "Loading the models";
      try {
        world = await fetchAll();
        world.styled = [...world.styled];
        world.tokenize = cibrModel.tokenizer(world.tokenizer);
        await sheet();
        at("status").textContent = `Embedding ${world.names.length.toLocaleString("en")} names`;
        const built = [];
        for (const name of world.models)
          built.push(
            await build(name, (part) => {
              at("progress").value = 0.6 + 0.2 * (built.length + part);
            }),
          );
        models = built.map((model) => ({ ...model, ...panel(model.name) }));
      } catch (error) {
        loading = null;
        at("load").disabled = false;
        at("progress").hidden = true;
        at("status").textContent =
          `The models could not be loaded (${error.message}): check the connection and try again.`;
        return;
      }
      at("status").textContent = "Both models are loaded.";
      at("load").remove();
      at("progress").remove();
      if (wasFocused) canvas.focus({ preventScroll: true });
      if (source.kind === "drawing" && !strokes.length) choose("printed", 0);
      update();
    })();
    return loading;
  };
  at("load").addEventListener("click", load);

  box.hidden = false;
  plain();
  choose("drawing");
})();
