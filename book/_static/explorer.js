// The figure "move beta": draws the numbers that the page holds as JSON. No library, no network.
(() => {
  "use strict";
  const box = document.getElementById("explorer");
  if (!box) return;
  const data = JSON.parse(document.getElementById("explorer-data").textContent);
  const [methods, slider, value, summary, plane, scores] = ["method", "beta", "value", "summary", "plane", "scores"].map(
    (name) => document.getElementById(`explorer-${name}`)
  );
  const SVG = "http://www.w3.org/2000/svg";
  const LEFT = 52, RIGHT = 328, TOP = 18, BOTTOM = 222;

  const add = (parent, tag, attributes, text) => {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return parent.appendChild(element);
  };
  const clear = (svg) => [...svg.children].slice(1).forEach((child) => child.remove()); // the title stays
  const range = (values) => {
    const low = Math.min(...values), high = Math.max(...values);
    const margin = 0.12 * (high - low) || 0.1 * Math.abs(high) || 1;
    return [low - margin, high + margin];
  };
  const ticks = ([low, high], n) => {
    const rough = (high - low) / n, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
    const found = [];
    for (let t = Math.ceil(low / step) * step; t <= high; t += step) found.push(Number(t.toPrecision(12)));
    return found;
  };
  const method = () => data.methods[Number(methods.value)];

  const drawPlane = (points, chosen) => {
    clear(plane);
    const xs = range(points.map((p) => p.cosine)), ys = range(points.map((p) => p.shared));
    const x = (v) => LEFT + ((v - xs[0]) / (xs[1] - xs[0])) * (RIGHT - LEFT);
    const y = (v) => BOTTOM - ((v - ys[0]) / (ys[1] - ys[0])) * (BOTTOM - TOP);
    for (const t of ticks(xs, 4)) {
      add(plane, "line", { x1: x(t), x2: x(t), y1: TOP, y2: BOTTOM, class: "grid" });
      add(plane, "text", { x: x(t), y: BOTTOM + 16, "text-anchor": "middle" }, t);
    }
    for (const t of ticks(ys, 4)) {
      add(plane, "line", { x1: LEFT, x2: RIGHT, y1: y(t), y2: y(t), class: "grid" });
      add(plane, "text", { x: LEFT - 6, y: y(t) + 4, "text-anchor": "end" }, t);
    }
    add(plane, "text", { x: (LEFT + RIGHT) / 2, y: BOTTOM + 36, "text-anchor": "middle" }, "mean cosine of unseen pairs");
    const label = { x: 14, y: (TOP + BOTTOM) / 2, "text-anchor": "middle" };
    add(plane, "text", { ...label, transform: `rotate(-90 ${label.x} ${label.y})` }, "shared, lower bound (nats)");
    const trail = points.slice(1).map((p) => `${x(p.cosine)},${y(p.shared)}`).join(" ");
    add(plane, "polyline", { points: trail, class: "trail" });
    points.forEach((p, i) => add(plane, "circle", { cx: x(p.cosine), cy: y(p.shared), r: 4, class: i ? "point" : "clip" }));
    const p = points[chosen], clip = points[0];
    add(plane, "circle", { cx: x(p.cosine), cy: y(p.shared), r: 8, class: "chosen" });
    const side = x(clip.cosine) > (LEFT + RIGHT) / 2 ? ["end", -9] : ["start", 9];
    add(plane, "text", { x: x(clip.cosine) + side[1], y: y(clip.shared) - 9, "text-anchor": side[0] }, "CLIP");
  };

  const drawScores = (points, chosen) => {
    clear(scores);
    const high = Math.max(...points.flatMap((p) => p.high)) * 1.12;
    const x = (v) => LEFT - 40 + (v / high) * (RIGHT - LEFT + 34);
    const row = (BOTTOM + 30 - TOP) / data.scores.length;
    data.scores.forEach((name, i) => {
      const top = TOP + i * row, p = points[chosen];
      add(scores, "text", { x: x(0), y: top + 8 }, name);
      add(scores, "text", { x: RIGHT + 6, y: top + 8, "text-anchor": "end", class: "strong" }, `${p.scores[i].toFixed(1)} %`);
      add(scores, "rect", { x: x(0), y: top + 15, width: x(high) - x(0), height: 18, class: "track" });
      add(scores, "rect", { x: x(0), y: top + 15, width: x(p.scores[i]) - x(0), height: 18, class: chosen ? "bar" : "bar-clip" });
      add(scores, "line", { x1: x(p.low[i]), x2: x(p.high[i]), y1: top + 24, y2: top + 24, class: "interval" });
      const clip = x(points[0].scores[i]);
      add(scores, "line", { x1: clip, x2: clip, y1: top + 11, y2: top + 37, class: "mark" });
    });
    add(scores, "text", { x: x(0), y: 266 }, "the upright line is CLIP");
  };

  const draw = () => {
    const points = method().points, chosen = Number(slider.value), p = points[chosen];
    value.textContent = p.beta === 0 ? "0 (CLIP)" : p.beta;
    slider.setAttribute("aria-valuetext", `beta ${p.beta}`);
    drawPlane(points, chosen);
    drawScores(points, chosen);
    const signed = (d) => `${d >= 0 ? "+" : "−"}${Math.abs(d).toFixed(1)}`;
    const told = data.scores.map((name, i) => `${name} ${p.scores[i].toFixed(1)} %` +
      (chosen ? ` (${signed(p.scores[i] - points[0].scores[i])} against CLIP)` : ""));
    summary.textContent = `${chosen ? method().name : "CLIP"} at β = ${p.beta}: ${told.join(", ")}; mean cosine of pairs ` +
      `${p.cosine.toFixed(3)}, shared at least ${p.shared.toFixed(2)} nats; mean of ${p.n_seeds} seeds.`;
  };

  const choose = () => {
    slider.max = method().points.length - 1;
    slider.value = 1; // the smallest beta above 0: a point that exists on every curve
    draw();
  };

  data.methods.forEach((m, i) => methods.add(new Option(`${m.name}, ${m.condition}`, i)));
  methods.addEventListener("change", choose);
  slider.addEventListener("input", draw);
  box.hidden = false;
  choose();
})();
