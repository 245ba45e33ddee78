// The map of "When does a bottleneck pay?": draws the numbers that the page holds as JSON, at the
// cell that the page's address names. No library, no network.
(() => {
  "use strict";
  const box = document.getElementById("between");
  if (!box) return;
  const part = (name) => document.getElementById(`between-${name}`);
  const data = JSON.parse(part("data").textContent);
  const controls = [part("pairs"), part("nuisance")];
  const axes = [data.pairs, data.nuisances];
  const LEFT = 60, RIGHT = 396, TOP = 8, BOTTOM = 284;
  const WIDE = (RIGHT - LEFT) / data.nuisances.length;
  const HIGH = (BOTTOM - TOP) / data.pairs.length;

  const add = (tag, attributes, text = "") => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    Object.entries(attributes).forEach(([name, value]) => element.setAttribute(name, value));
    element.textContent = text;
    return part("map").appendChild(element);
  };
  const signed = (x) => `${x < 0 ? "−" : "+"}${Math.abs(x).toFixed(1)}`;
  const grouped = (n) => n.toLocaleString("en");
  const place = (cell) => [data.pairs.indexOf(cell.pairs), data.nuisances.indexOf(cell.nuisance)];
  const corner = ([i, j]) => ({ x: LEFT + j * WIDE, y: BOTTOM - (i + 1) * HIGH });
  const shape = { width: WIDE, height: HIGH };
  const middle = { "text-anchor": "middle" };

  const drawMap = () => {
    for (const cell of data.cells) {
      const at = corner(place(cell));
      const style = cell.best === "CLIP" ? "" : `--curve: ${data.colours[cell.best]}`;
      add("rect", { ...at, ...shape, class: "tint", style }).onclick = () => choose(place(cell));
      const centre = { x: at.x + WIDE / 2, y: at.y + HIGH / 2 + 4 };
      if (cell.gain) add("text", { ...centre, ...middle, class: "number" }, signed(cell.gain));
    }
    data.pairs.forEach((n, i) => add("text", { x: LEFT - 6, y: corner([i, 0]).y + HIGH / 2 + 4, "text-anchor": "end" }, grouped(n)));
    data.nuisances.forEach((s, j) => add("text", { x: corner([0, j]).x + WIDE / 2, y: BOTTOM + 16, ...middle }, s));
    add("text", { x: (LEFT + RIGHT) / 2, y: BOTTOM + 36, ...middle }, "nuisance scale");
    const side = { x: 12, y: (TOP + BOTTOM) / 2 };
    add("text", { ...side, ...middle, transform: `rotate(-90 ${side.x} ${side.y})` }, "training pairs");
  };
  const ring = add("rect", { ...shape, class: "chosen" });

  const fill = (row, texts, tag) => texts.forEach((text) => {
    row.appendChild(document.createElement(tag)).textContent = text;
  });
  const HEAD = ["method", "recall@1 (%)", "gain [95 %]", "shared (nats)", "residual (nats)", "chosen on validation"];
  const numbers = (m) => [m.name, m.recall.toFixed(1), m.mean === null ? "" : `${signed(m.mean)} [${signed(m.low)}, ${signed(m.high)}]`, m.shared.toFixed(2), m.residual.toFixed(2), m.settings || "defaults"];

  const draw = () => {
    const chosen = controls.map((control) => Number(control.value));
    const cell = data.cells.find((c) => String(place(c)) === String(chosen));
    part("pairs-value").textContent = grouped(cell.pairs);
    part("nuisance-value").textContent = cell.nuisance;
    controls[0].setAttribute("aria-valuetext", `${cell.pairs} pairs`);
    controls[1].setAttribute("aria-valuetext", `nuisance scale ${cell.nuisance}`);
    Object.entries(corner(chosen)).forEach(([name, value]) => ring.setAttribute(name, value));
    part("map").append(ring); // above the cells
    const outcome = cell.best === "CLIP" ? "no method is better than tuned CLIP by half a point" : `${cell.best} is best, ${signed(cell.gain)} points over tuned CLIP`;
    part("summary").textContent = `${grouped(cell.pairs)} pairs, nuisance scale ${cell.nuisance}: ${outcome}.`;
    part("methods").replaceChildren();
    fill(part("methods").createTHead().insertRow(), HEAD, "th");
    const body = part("methods").createTBody();
    cell.methods.forEach((m) => fill(body.insertRow(), numbers(m), "td"));
    return cell;
  };
  const choose = (at) => {
    at.forEach((value, k) => { controls[k].value = value; });
    const { pairs, nuisance } = draw();
    history.replaceState(null, "", `#${new URLSearchParams({ pairs, nuisance })}`);
  };
  // The address: #pairs=...&nuisance=..., by value, so that it outlives a change of the map.
  const recall = () => {
    const named = new URLSearchParams(location.hash.slice(1));
    const at = axes.map((axis, k) => axis.indexOf(Number(named.get(["pairs", "nuisance"][k]))));
    if (Math.min(...at) >= 0) at.forEach((value, k) => { controls[k].value = value; });
    draw();
  };

  controls.forEach((control, k) => {
    control.max = axes[k].length - 1;
    control.value = 1;
    control.addEventListener("input", () => choose(controls.map((c) => Number(c.value))));
  });
  for (const [name, colour] of Object.entries(data.colours)) {
    const label = part("key").appendChild(document.createElement("span"));
    if (name !== "CLIP") label.style.setProperty("--curve", colour);
    label.textContent = name === "CLIP" ? "CLIP: nothing gains half a point" : name;
  }
  drawMap();
  addEventListener("hashchange", recall);
  box.hidden = false;
  recall();
})();
