// The map of "When does a bottleneck pay?": draws the numbers that the page holds as JSON, at the
// cell that the page's address names. No library, no network.
(() => {
  "use strict";
  const box = document.getElementById("between");
  if (!box) return;
  const data = JSON.parse(document.getElementById("between-data").textContent);
  const [pairs, nuisance, summary, key, map, recalls, plane, settings] =
    ["pairs", "nuisance", "summary", "key", "map", "recalls", "plane", "settings"].map((name) => document.getElementById(`between-${name}`));
  const SVG = "http://www.w3.org/2000/svg";
  const OTHER = "#6E6E6E"; // of methods that are never called best
  const LEFT = 60, RIGHT = 396, TOP = 8, BOTTOM = 284;

  const add = (parent, tag, attributes, text) => {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return parent.appendChild(element);
  };
  const clear = (svg) => [...svg.children].slice(1).forEach((child) => child.remove()); // the title stays
  const signed = (x, digits = 1) => `${x < 0 ? "−" : "+"}${Math.abs(x).toFixed(digits)}`;
  const colour = (name) => (name === "CLIP" ? "var(--pst-color-text-base)" : data.colours[name] ?? OTHER);
  const at = (i, j) => data.cells.find((c) => c.pairs === data.pairs[i] && c.nuisance === data.nuisances[j]);
  const chosen = () => at(Number(pairs.value), Number(nuisance.value));
  const grouped = (n) => n.toLocaleString("en");

  const drawMap = () => {
    clear(map);
    const wide = (RIGHT - LEFT) / data.nuisances.length, high = (BOTTOM - TOP) / data.pairs.length;
    const x = (j) => LEFT + j * wide, y = (i) => BOTTOM - (i + 1) * high;
    data.pairs.forEach((n, i) => {
      add(map, "text", { x: LEFT - 6, y: y(i) + high / 2 + 4, "text-anchor": "end" }, grouped(n));
      data.nuisances.forEach((s, j) => {
        const cell = at(i, j);
        if (!cell) return;
        const style = cell.best === "CLIP" ? "" : `--curve: ${data.colours[cell.best]}`;
        const rect = add(map, "rect", { x: x(j), y: y(i), width: wide, height: high, class: "tint", style });
        rect.addEventListener("click", () => choose(i, j));
        if (cell.gain) add(map, "text", { x: x(j) + wide / 2, y: y(i) + high / 2 + 4, "text-anchor": "middle", class: "number" }, signed(cell.gain));
      });
    });
    data.nuisances.forEach((s, j) => add(map, "text", { x: x(j) + wide / 2, y: BOTTOM + 16, "text-anchor": "middle" }, s));
    add(map, "text", { x: (LEFT + RIGHT) / 2, y: BOTTOM + 36, "text-anchor": "middle" }, "nuisance scale");
    const side = { x: 12, y: (TOP + BOTTOM) / 2, "text-anchor": "middle" };
    add(map, "text", { ...side, transform: `rotate(-90 ${side.x} ${side.y})` }, "training pairs");
    const [i, j] = [Number(pairs.value), Number(nuisance.value)];
    add(map, "rect", { x: x(j), y: y(i), width: wide, height: high, class: "chosen" });
  };

  const drawRecalls = () => {
    clear(recalls);
    const { methods } = chosen(), start = 168, end = 356;
    const x = (recall) => start + (recall / 100) * (end - start), step = (BOTTOM - TOP) / methods.length;
    for (let t = 0; t <= 100; t += 25) {
      add(recalls, "line", { x1: x(t), x2: x(t), y1: TOP, y2: BOTTOM, class: t ? "grid" : "zero" });
      add(recalls, "text", { x: x(t), y: BOTTOM + 16, "text-anchor": "middle" }, t);
    }
    methods.forEach((m, k) => {
      const y = TOP + (k + 0.5) * step, style = `--curve: ${colour(m.name)}`;
      add(recalls, "text", { x: start - 8, y: y + 4, "text-anchor": "end" }, m.name);
      add(recalls, "line", { x1: start, x2: x(m.recall), y1: y, y2: y, style, class: "interval" });
      add(recalls, "circle", { cx: x(m.recall), cy: y, r: 5, style, class: "dot strong" });
      add(recalls, "text", { x: RIGHT, y: y + 4, "text-anchor": "end" }, m.recall.toFixed(1));
    });
    add(recalls, "text", { x: (start + end) / 2, y: BOTTOM + 36, "text-anchor": "middle" }, "test recall@1 among 1,000 (%)");
  };

  // An axis that spans the values of a cell, with three to six ticks.
  const axis = (values, start, end) => {
    const [low, high] = [Math.min(...values), Math.max(...values)], pad = Math.max(0.05, 0.15 * (high - low));
    const step = [0.05, 0.1, 0.2, 0.5, 1, 2, 5].find((size) => (high - low + 2 * pad) / size <= 6);
    const at = (value) => start + ((value - low + pad) / (high - low + 2 * pad)) * (end - start);
    const first = Math.ceil((low - pad) / step), last = Math.floor((high + pad) / step);
    const ticks = Array.from({ length: last - first + 1 }, (_, k) => Number(((first + k) * step).toFixed(2)));
    return { at, ticks };
  };
  const drawPlane = () => {
    clear(plane);
    const left = 54, shown = chosen().methods.filter((m) => m.name in data.colours);
    const x = axis(shown.map((m) => m.residual), left, RIGHT), y = axis(shown.map((m) => m.shared), BOTTOM, TOP);
    for (const t of y.ticks) {
      add(plane, "line", { x1: left, x2: RIGHT, y1: y.at(t), y2: y.at(t), class: "grid" });
      add(plane, "text", { x: left - 6, y: y.at(t) + 4, "text-anchor": "end" }, t);
    }
    for (const t of x.ticks) {
      add(plane, "line", { x1: x.at(t), x2: x.at(t), y1: TOP, y2: BOTTOM, class: "grid" });
      add(plane, "text", { x: x.at(t), y: BOTTOM + 16, "text-anchor": "middle" }, t);
    }
    add(plane, "text", { x: (left + RIGHT) / 2, y: BOTTOM + 36, "text-anchor": "middle" }, "residual information (nats)");
    const side = { x: 10, y: (TOP + BOTTOM) / 2, "text-anchor": "middle" };
    add(plane, "text", { ...side, transform: `rotate(-90 ${side.x} ${side.y})` }, "shared information (nats)");
    for (const m of shown) {
      const dot = { cx: x.at(m.residual), cy: y.at(m.shared), r: 6, style: `--curve: ${colour(m.name)}`, class: "dot strong" };
      add(add(plane, "circle", dot), "title", {}, m.name);
    }
  };

  // What the methods with CLIP's towers gain: the best, if it is certain, and the others.
  const verdict = () => {
    const cell = chosen(), place = `${grouped(cell.pairs)} pairs, nuisance scale ${cell.nuisance}: `;
    const strong = document.createElement("strong");
    strong.textContent = cell.best === "CLIP" ? "No method is better than tuned CLIP by half a point." : `${cell.best} is best, ${signed(cell.gain)} points over tuned CLIP.`;
    const clip = cell.methods.find((m) => m.name === "CLIP");
    const shown = cell.methods.filter((m) => m.name in data.colours && m.gain !== null);
    const told = shown.map((m) => `${m.name} ${signed(m.gain)} [${signed(m.low)}, ${signed(m.high)}]`).join("; ");
    summary.replaceChildren(place, strong, ` CLIP has ${clip.recall.toFixed(1)} %. Differences in points with 95 % intervals: ${told}.`);
  };

  const fill = (row, texts, tag) => texts.forEach((text) => {
    const cell = document.createElement(tag);
    cell.textContent = text;
    row.append(cell);
  });
  const drawSettings = () => {
    settings.replaceChildren();
    fill(settings.createTHead().insertRow(), ["method", "chosen on validation"], "th");
    const body = settings.createTBody();
    chosen().methods.forEach((m) => fill(body.insertRow(), [m.name, m.settings || "defaults"], "td"));
  };

  const draw = () => {
    const cell = chosen();
    document.getElementById("between-pairs-value").textContent = grouped(cell.pairs);
    document.getElementById("between-nuisance-value").textContent = cell.nuisance;
    pairs.setAttribute("aria-valuetext", `${cell.pairs} pairs`);
    nuisance.setAttribute("aria-valuetext", `nuisance scale ${cell.nuisance}`);
    [drawMap, drawRecalls, drawPlane, verdict, drawSettings].forEach((part) => part());
  };
  const remember = () => history.replaceState(null, "", `#${new URLSearchParams({ pairs: chosen().pairs, nuisance: chosen().nuisance })}`);
  const choose = (i, j) => {
    [pairs.value, nuisance.value] = [i, j];
    draw();
    remember();
  };
  // The address: #pairs=...&nuisance=..., by value, so that it outlives a change of the map.
  const recall = () => {
    const place = new URLSearchParams(location.hash.slice(1));
    const [i, j] = [data.pairs.indexOf(Number(place.get("pairs"))), data.nuisances.indexOf(Number(place.get("nuisance")))];
    if (i >= 0 && j >= 0) [pairs.value, nuisance.value] = [i, j];
    draw();
  };

  [pairs.max, nuisance.max] = [data.pairs.length - 1, data.nuisances.length - 1];
  [pairs.value, nuisance.value] = [Math.min(1, pairs.max), Math.min(1, nuisance.max)];
  for (const control of [pairs, nuisance]) control.addEventListener("input", () => choose(Number(pairs.value), Number(nuisance.value)));
  addEventListener("hashchange", recall);
  for (const name of Object.keys(data.colours)) {
    const swatch = document.createElement("i");
    if (name !== "CLIP") swatch.style.setProperty("--curve", data.colours[name]);
    const label = document.createElement("span");
    label.append(swatch, name === "CLIP" ? "CLIP: nothing gains half a point" : name);
    key.append(label);
  }
  box.hidden = false;
  recall();
})();
