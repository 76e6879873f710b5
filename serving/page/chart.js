// A live chart of one or two lines.

const SVG = "http://www.w3.org/2000/svg";
const POINTS = 90;

export class Chart {
  /** `lines` are their names; `format` writes a value for people. */
  constructor(title, lines, format, top = null) {
    this.title = title;
    this.lines = lines;
    this.format = format;
    this.top = top;
    this.points = lines.map(() => []);
    this.root = document.createElement("figure");
    this.root.className = "card chart";
    const caption = document.createElement("figcaption");
    const heading = document.createElement("h2");
    heading.textContent = title;
    const keys = document.createElement("div");
    keys.className = "keys";
    keys.append(...(lines.length > 1 ? lines : []).map((name) => element("span", name)));
    caption.append(heading, keys);
    this.picture = document.createElementNS(SVG, "svg");
    this.picture.setAttribute("viewBox", `0 0 ${POINTS - 1} 100`);
    this.picture.setAttribute("preserveAspectRatio", "none");
    this.picture.setAttribute("role", "img");
    this.scale = element("div", "");
    this.scale.className = "scale";
    this.root.append(caption, this.picture, this.scale);
    this.draw();
  }

  /** Add a value for each line; null is a gap at the beginning. */
  push(...values) {
    values.forEach((value, line) => {
      this.points[line].push(value);
      if (this.points[line].length > POINTS) this.points[line].shift();
    });
    this.draw();
  }

  draw() {
    const known = this.points.flat().filter((value) => value !== null);
    const top = this.top ?? Math.max(1, ...known) * 1.05;
    const grid = [25, 50, 75, 100].map((y) => {
      const line = document.createElementNS(SVG, "line");
      for (const [name, value] of Object.entries({ x1: 0, x2: POINTS - 1, y1: y, y2: y })) {
        line.setAttribute(name, value);
      }
      line.setAttribute("class", "grid");
      return line;
    });
    const drawn = this.points.map((values, index) => {
      const start = POINTS - values.length;
      const line = document.createElementNS(SVG, "polyline");
      line.setAttribute("class", `line-${index}`);
      const places = values.flatMap((value, step) =>
        value === null ? [] : [`${start + step},${(100 - (98 * value) / top).toFixed(2)}`],
      );
      line.setAttribute("points", places.join(" "));
      return line;
    });
    this.picture.replaceChildren(...grid, ...drawn);
    const now = this.points.map((values, index) => {
      const last = values.at(-1) ?? null;
      return `${this.lines[index]} ${last === null ? "not known yet" : this.format(last)}`;
    });
    this.picture.setAttribute("aria-label", `${this.title}: ${now.join(", ")}`);
    this.scale.replaceChildren(element("span", now.join(" · ")), element("span", `top ${this.format(top)}`));
  }
}

function element(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}
