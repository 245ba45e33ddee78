// The drawing in the chapter on training: what two models call a drawing or a printed character.
// The models run here, see draw_model.js. No library, no other host.
(() => {
  "use strict";
  const at = (name) => document.getElementById(`draw-${name}`);
  if (!at("page")) return;
  const { scripts, guides } = JSON.parse(at("data").textContent);
  const SIDE = 32;
  const N_NAMES = 5;
  const PEN = 2.4; // px of the 32
  const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

  const canvas = at("canvas");
  const large = canvas.getContext("2d");
  const small = at("seen").getContext("2d", { willReadFrequently: true });
  const unit = canvas.width / SIDE;
  const pen = { x: 16, y: 16, stroke: null, isShown: false };
  let world = null; // names, images and weights, once loaded
  let loading = null;
  let strokes = [];
  let drawn = null; // the stroke under the pointer
  let said = 0; // the timer of what is spoken

  const make = (tag, attributes, ...children) => {
    const element = Object.assign(document.createElement(tag), attributes);
    element.append(...children);
    return element;
  };
  const printed = () => Number(at("pick").value); // -1 is the drawing

  // ---- the image
  const paint = (context, scale) => {
    const [paper, ink] = at("white").checked ? ["black", "white"] : ["white", "black"];
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.fillStyle = paper;
    context.fillRect(0, 0, SIDE, SIDE);
    const pencil = { strokeStyle: ink, lineWidth: PEN, lineCap: "round", lineJoin: "round" };
    Object.assign(context, pencil);
    for (const stroke of strokes) {
      context.beginPath();
      context.moveTo(...stroke[0]);
      for (const [x, y] of stroke) context.lineTo(x, y + 0.01); // a point is seen, too
      context.stroke();
    }
  };
  const imageOf = (i) => {
    const start = i * SIDE ** 2;
    return world.pixels.subarray(start, start + SIDE ** 2);
  };
  const put = (context, grey) => {
    const pixels = context.createImageData(SIDE, SIDE);
    grey.forEach((level, i) => pixels.data.set([level, level, level, 255], 4 * i));
    context.putImageData(pixels, 0, 0);
  };
  // Shows the image, small and large, and gives its grey levels.
  const show = () => {
    if (printed() < 0) {
      paint(small, 1);
      paint(large, unit);
    } else {
      put(small, imageOf(printed()).map((level) => (at("white").checked ? 255 - level : level)));
      large.resetTransform();
      large.imageSmoothingEnabled = false;
      large.drawImage(at("seen"), 0, 0, canvas.width, canvas.height);
    }
    showGuides();
    if (document.activeElement === canvas && pen.isShown) showPen();
    return small.getImageData(0, 0, SIDE, SIDE).data.filter((_, i) => i % 4 === 0);
  };
  // Where capitals, small letters and the line lie in the images of the training set.
  const showGuides = () => {
    large.resetTransform();
    Object.assign(large, { strokeStyle: "#8899aa", lineWidth: 1 });
    large.setLineDash([4, 8]);
    large.beginPath();
    for (const y of guides) {
      large.moveTo(0, y * unit);
      large.lineTo(canvas.width, y * unit);
    }
    large.stroke();
    large.setLineDash([]);
  };
  const showPen = () => {
    Object.assign(large, { strokeStyle: pen.stroke ? "#d55e00" : "#0072b2", lineWidth: 4 });
    large.beginPath();
    large.arc(pen.x * unit, pen.y * unit, 14, 0, 2 * Math.PI);
    large.stroke();
  };

  // ---- what the models say
  const answer = (model, grey) => {
    const cosines = cibrModel.cosines(world.weights[model], grey, world.names.length);
    const order = [...cosines.keys()].sort((a, b) => cosines[b] - cosines[a]);
    const rank = order.indexOf(printed()) + 1;
    const { note, rows } = world.panels[model];
    note.textContent = rank ? `right name: rank ${rank}` : "";
    rows.forEach((row, k) => {
      const [picture, name, number, bar] = row.children;
      const i = order[k];
      put(picture.getContext("2d"), imageOf(i));
      name.textContent = world.names[i];
      number.textContent = cosines[i].toFixed(2);
      bar.style.width = `${100 * Math.max(0, cosines[i])}%`;
      row.classList.toggle("right", i === printed());
    });
    return `${model}: ${world.names[order[0]]}`;
  };
  const answerAll = () => {
    const grey = show();
    if (!world) return;
    const isEmpty = printed() < 0 && !strokes.length;
    at("names").hidden = isEmpty;
    at("hint").textContent = isEmpty ? "Draw, or take a character." : "";
    const text = isEmpty ? "" : world.models.map((model) => answer(model, grey)).join(". ");
    // Spoken after a pause, so that a screen reader is not told of every step.
    clearTimeout(said);
    said = setTimeout(() => {
      at("said").textContent = text;
    }, 400);
  };
  let waits = false;
  const update = () => {
    if (waits) return;
    waits = true;
    requestAnimationFrame(() => {
      waits = false;
      answerAll();
    });
  };

  // ---- mouse, finger and keyboard
  const start = (point) => {
    if (printed() >= 0) strokes = [];
    at("pick").value = -1;
    strokes.push([point]);
    load();
    update();
    return strokes.at(-1);
  };
  const place = (event) => {
    const { left, top, width, height } = canvas.getBoundingClientRect();
    return [
      ((event.clientX - left) / width) * SIDE,
      ((event.clientY - top) / height) * SIDE,
    ];
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    canvas.setPointerCapture(event.pointerId);
    Object.assign(pen, { isShown: false, stroke: null });
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
  canvas.addEventListener("keydown", (event) => {
    const move = MOVES[event.key];
    if (!move && event.key !== " ") return;
    event.preventDefault();
    pen.isShown = true;
    if (move) {
      pen.x = Math.min(SIDE, Math.max(0, pen.x + move[0]));
      pen.y = Math.min(SIDE, Math.max(0, pen.y + move[1]));
      pen.stroke?.push([pen.x, pen.y]);
    } else pen.stroke = pen.stroke ? null : start([pen.x, pen.y]);
    at("pen").textContent = `Pen ${pen.stroke ? "down" : "up"}, ${pen.x} across, ${pen.y} down`;
    update();
  });
  for (const name of ["focus", "blur"]) canvas.addEventListener(name, update);

  const erase = (rest) => {
    at("pick").value = -1;
    pen.stroke = null;
    strokes = rest;
    update();
  };
  at("undo").addEventListener("click", () => erase(printed() < 0 ? strokes.slice(0, -1) : strokes));
  at("clear").addEventListener("click", () => erase([]));
  at("white").addEventListener("change", update);
  at("pick").addEventListener("change", async () => {
    await load();
    if (world) update();
    else at("pick").value = -1;
  });

  // ---- loading
  const addScript = (src) =>
    new Promise((onload, fail) => {
      const onerror = () => fail(new Error(src));
      document.head.append(make("script", { src, onload, onerror }));
    });
  const panel = (name) => {
    const row = () => {
      const picture = make("canvas", { width: SIDE, height: SIDE, ariaHidden: "true" });
      return make("li", {}, picture, make("span"), make("output"), make("i"));
    };
    const note = make("small");
    const rows = Array.from({ length: N_NAMES }, row);
    at("names").append(make("section", {}, make("h3", {}, name, note), make("ol", {}, ...rows)));
    return { note, rows };
  };
  const fetchAll = async () => {
    let bytes;
    window.cibrDrawing = (text) => {
      bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    };
    await Promise.all(scripts.map(addScript));
    return cibrModel.unpack(bytes);
  };
  const load = () => {
    loading ??= (async () => {
      at("load").hidden = true;
      at("status").textContent = "Loading the models";
      try {
        const found = await fetchAll();
        found.panels = Object.fromEntries(found.models.map((name) => [name, panel(name)]));
        world = found;
      } catch (error) {
        loading = null;
        at("load").hidden = false;
        at("status").textContent =
          `The models could not be loaded (${error.message}): check the connection.`;
        return;
      }
      at("status").textContent = "Both models are loaded.";
      if (!strokes.length && printed() < 0) at("pick").selectedIndex = 1;
      update();
    })();
    return loading;
  };
  at("load").addEventListener("click", load);
  const isNear = (seen, watch) => {
    if (!seen.some((entry) => entry.isIntersecting)) return;
    watch.disconnect();
    load();
  };
  new IntersectionObserver(isNear, { rootMargin: "600px" }).observe(at("page"));

  at("page").hidden = false;
  show();
})();
