// The information curve of the discrete world: draws the optima that the page holds as JSON. No library, no network.
(() => {
  "use strict";
  const box = document.getElementById("curve");
  if (!box) return;
  const data = JSON.parse(document.getElementById("curve-data").textContent);
  const [beta, ambiguity, svg, summary] = ["beta", "ambiguity", "drawing", "summary"].map((name) => document.getElementById(`curve-${name}`));
  const SVG = "http://www.w3.org/2000/svg";
  const LEFT = 48, RIGHT = 390, TOP = 14, BOTTOM = 196;
  const all = data.points.flat(), most = Math.max(...all.map((p) => p.residual)) * 1.08, low = 0.6, top = 1.4;
  const x = (residual) => LEFT + (residual / most) * (RIGHT - LEFT), y = (shared) => BOTTOM - ((shared - low) / (top - low)) * (BOTTOM - TOP);

  const add = (tag, attributes, text) => {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return svg.appendChild(element);
  };
  const trail = (points, strong) => {
    const style = { style: "--curve: var(--cibr-image)", class: strong ? "curve strong" : "curve" };
    add("polyline", { points: points.map((p) => `${x(p.residual)},${y(p.shared)}`).join(" "), ...style });
    const dot = { r: strong ? 4 : 2, style: style.style, class: strong ? "dot strong" : "dot" };
    for (const p of points) add("circle", { cx: x(p.residual), cy: y(p.shared), ...dot });
  };

  // Weights in a row with the same optimum are one position: the control has as many as its curve has points.
  const isSame = (p, q) => p && p.shared === q.shared && p.residual === q.residual;
  const starts = data.points.map((points) => [...points.keys()].filter((i) => !isSame(points[i - 1], points[i])));
  const range = (a, step) => {
    const first = starts[a][step], last = (starts[a][step + 1] ?? data.betas.length) - 1;
    return data.betas[first] + (last > first ? ` to ${data.betas[last]}` : "");
  };

  let chosen = data.betas.indexOf(0.2); // the weight, which another curve keeps
  const draw = () => {
    const a = Number(ambiguity.value), points = data.points[a], betas = range(a, Number(beta.value));
    const p = points[starts[a][beta.value]];
    [...svg.children].slice(1).forEach((child) => child.remove()); // the title stays
    for (let t = low; t < top + 0.01; t += 0.2) {
      add("line", { x1: LEFT, x2: RIGHT, y1: y(t), y2: y(t), class: "grid" });
      add("text", { x: LEFT - 5, y: y(t) + 4, "text-anchor": "end" }, t.toFixed(1));
    }
    for (let t = 0; t <= most; t += 0.1) add("text", { x: x(t), y: BOTTOM + 15, "text-anchor": "middle" }, t.toFixed(1));
    add("text", { x: (LEFT + RIGHT) / 2, y: BOTTOM + 34, "text-anchor": "middle" }, "residual information (nats)");
    const label = { x: 12, y: (TOP + BOTTOM) / 2, "text-anchor": "middle" };
    add("text", { ...label, transform: `rotate(-90 ${label.x} ${label.y})` }, "shared information (nats)");
    add("line", { x1: LEFT, x2: RIGHT, y1: y(data.limits[a]), y2: y(data.limits[a]), class: "zero" });
    add("text", { x: LEFT + 6, y: y(data.limits[a]) - 6 }, "all that image and text share");
    data.points.forEach((other, i) => i !== a && trail(other, false));
    trail(points, true);
    add("circle", { cx: x(p.residual), cy: y(p.shared), r: 8, class: "chosen" });
    document.getElementById("curve-beta-value").textContent = betas;
    document.getElementById("curve-ambiguity-value").textContent = `${Math.round(100 * data.ambiguities[a])} %`;
    beta.setAttribute("aria-valuetext", `beta ${betas}`);
    ambiguity.setAttribute("aria-valuetext", `${Math.round(100 * data.ambiguities[a])} % confused`);
    const apart = p.apart.map((distance) => (distance > 0.5 ? "is distinguished" : "has one code"));
    summary.textContent = `The best encoders share ${p.shared.toFixed(2)} of ${data.limits[a].toFixed(2)} nats and pay ${p.residual.toFixed(2)}. ` +
      `The pair that texts confuse in ${Math.round(100 * data.ambiguities[a])} % of cases ${apart[0]}, the other pair (5 %) ${apart[1]}.`;
  };

  const choose = () => {
    const own = starts[ambiguity.value];
    beta.max = own.length - 1;
    beta.value = own.findLastIndex((first) => first <= chosen);
    draw();
  };
  ambiguity.max = data.ambiguities.length - 1;
  ambiguity.value = 3;
  beta.addEventListener("input", () => {
    chosen = starts[ambiguity.value][beta.value];
    draw();
  });
  ambiguity.addEventListener("input", choose);
  box.hidden = false;
  choose();
})();
