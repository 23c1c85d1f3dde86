/**
 * The OpenMetrics text format, version 1.0. Source: the OpenMetrics specification, "Text Format". Written here,
 * because the well-known library renders asynchronously, and who answers a request has no event loop
 * (native-notes/fuse.md).
 */

export type MetricType = "counter" | "gauge" | "histogram" | "info" | "stateset";

export type Labels = Readonly<Record<string, string>>;

/** Metrics of one name. */
export interface MetricFamily {
  /** Ends with the unit, if there is one; without the suffixes that samples get from the type. */
  readonly name: string;
  readonly type: MetricType;
  readonly unit?: "bytes" | "seconds";
  readonly help: string;
}

export class OpenMetricsText {
  readonly #lines: string[] = [];
  #family = "";

  /** Start a family; all of its samples follow, before the next one starts. */
  family({ name, type, unit, help }: MetricFamily): void {
    this.#family = name;
    this.#lines.push(`# TYPE ${name} ${type}`);
    if (unit !== undefined) this.#lines.push(`# UNIT ${name} ${unit}`);
    this.#lines.push(`# HELP ${name} ${escapedText(help)}`);
  }

  /** @param suffix what the type appends to the name: `_total` of a counter, and so on */
  sample(
    suffix: "" | "_total" | "_bucket" | "_count" | "_sum" | "_info",
    labels: Labels,
    value: number,
  ): void {
    const pairs = Object.entries(labels).map(([name, text]) => `${name}="${escapedText(text)}"`);
    this.#lines.push(`${this.#family}${suffix}{${pairs.join(",")}} ${value}`);
  }

  end(): string {
    return `${this.#lines.join("\n")}\n# EOF\n`;
  }
}

/** Of label values and help texts. */
function escapedText(text: string): string {
  return text.replaceAll("\\", "\\\\").replaceAll("\n", "\\n").replaceAll('"', '\\"');
}
