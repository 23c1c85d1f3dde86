// A strict reader of the OpenMetrics text format, after the specification ("Text Format", "Metric Types"). It knows
// nothing of who wrote the text, and fails on everything that a scraper may refuse.

export interface Sample {
  readonly name: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly value: number;
}

export interface Family {
  readonly name: string;
  readonly type: string;
  readonly unit: string | undefined;
  readonly help: string | undefined;
  readonly samples: readonly Sample[];
}

const LABEL = /([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\.)*)"/.source;
const SAMPLE = new RegExp(
  `^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\\{((?:${LABEL}(?:,|(?=\\})))*)\\})? (\\S+)$`,
);

/** What samples of a type append to the name of their family. */
const SUFFIXES: Readonly<Record<string, readonly string[]>> = {
  counter: ["_total", "_created"],
  gauge: [""],
  histogram: ["_bucket", "_count", "_sum", "_created"],
  info: ["_info"],
  stateset: [""],
};

interface OpenFamily {
  readonly name: string;
  readonly samples: Sample[];
  /** TYPE, UNIT and HELP as they stand there. */
  readonly fields: Map<string, string>;
}

const DESCRIPTION = /^# (TYPE|UNIT|HELP) ([a-zA-Z_:][a-zA-Z0-9_:]*) (.*)$/;

/** @throws Error naming the first line that is wrong */
export function parseOpenMetrics(text: string): Family[] {
  const lines = text.split("\n");
  if (lines.pop() !== "" || lines.pop() !== "# EOF") throw new Error("does not end with # EOF");
  const families: Family[] = [];
  let open: OpenFamily | undefined;
  const close = (): void => {
    if (open === undefined) return;
    const family = familyOf(open);
    if (families.some(({ name }) => name === family.name)) fail(`${family.name} comes twice`);
    checkFamily(family);
    families.push(family);
  };
  for (const line of lines) {
    if (line.startsWith("#")) {
      const [, kind = "", name = "", rest = ""] = DESCRIPTION.exec(line) ?? fail(line);
      if (open?.name !== name) {
        close();
        open = { name, samples: [], fields: new Map() };
      }
      // What describes a family comes before its samples, and once.
      if (open.samples.length > 0 || open.fields.has(kind)) fail(line);
      open.fields.set(kind, rest);
    } else {
      const sample = parseSample(line);
      if (!sample.name.startsWith(open?.name ?? " ")) fail(line);
      open?.samples.push(sample);
    }
  }
  close();
  return families;
}

function familyOf({ name, samples, fields }: OpenFamily): Family {
  const help = fields.get("HELP");
  return {
    ...{ name, samples, type: fields.get("TYPE") ?? "unknown", unit: fields.get("UNIT") },
    help: help === undefined ? undefined : unescaped(help),
  };
}

function fail(line: string): never {
  throw new Error(`not OpenMetrics: ${line}`);
}

function parseSample(line: string): Sample {
  const match = SAMPLE.exec(line) ?? fail(line);
  const [name = "", list = "", number = ""] = [match[1], match[2], match[5]];
  const labels: Record<string, string> = {};
  for (const [, label = "", value = ""] of list.matchAll(new RegExp(LABEL, "g"))) {
    if (Object.hasOwn(labels, label)) fail(line);
    labels[label] = unescaped(value);
  }
  return { name, labels, value: numberOf(number, line) };
}

function numberOf(text: string, line: string): number {
  if (text === "+Inf") return Number.POSITIVE_INFINITY;
  if (!/^[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$/i.test(text)) fail(line);
  return Number(text);
}

function unescaped(text: string): string {
  return text.replace(/\\(.?)/g, (_, character: string) => {
    if (character === "n") return "\n";
    if (character === "\\" || character === '"') return character;
    return fail(text);
  });
}

function checkFamily({ name, type, unit, samples }: Family): void {
  const suffixes = SUFFIXES[type] ?? fail(`${name}: type ${type}`);
  if (unit !== undefined && !name.endsWith(`_${unit}`)) fail(`${name}: unit ${unit}`);
  if (["_total", "_count", "_sum", "_bucket", "_info"].some((end) => name.endsWith(end))) {
    fail(`${name}: the name of a family has no suffix`);
  }
  const seen = new Set<string>();
  for (const { name: full, labels, value } of samples) {
    if (!suffixes.includes(full.slice(name.length))) fail(`${full}: of type ${type}`);
    const key = JSON.stringify([full, Object.entries(labels).sort()]);
    if (seen.has(key)) fail(`${key} comes twice`);
    seen.add(key);
    if (type !== "gauge" && !(value >= 0)) fail(`${key}: ${value}`);
    if (type === "info" && value !== 1) fail(`${key}: ${value}`);
    if (type === "stateset" && (labels[name] === undefined || value > 1)) fail(key);
  }
  if (type === "histogram") checkHistogram(name, samples);
}

function checkHistogram(name: string, samples: readonly Sample[]): void {
  const byLabels = new Map<string, Sample[]>();
  for (const sample of samples) {
    const { le: _, ...labels } = sample.labels;
    const key = JSON.stringify(labels);
    byLabels.set(key, [...(byLabels.get(key) ?? []), sample]);
  }
  for (const [key, group] of byLabels) {
    const buckets = group.filter((sample) => sample.name === `${name}_bucket`);
    const bounds = buckets.map(({ labels }) => numberOf(labels["le"] ?? "", key));
    const values = buckets.map(({ value }) => value);
    const ascends = (numbers: readonly number[]): boolean =>
      numbers.every((value, index) => index === 0 || value >= (numbers[index - 1] ?? 0));
    if (!ascends(bounds) || new Set(bounds).size !== bounds.length) fail(`${key}: ${bounds}`);
    if (bounds.at(-1) !== Number.POSITIVE_INFINITY || !ascends(values)) fail(`${key}: ${values}`);
    const count = group.find((sample) => sample.name === `${name}_count`)?.value;
    if (count !== values.at(-1)) fail(`${key}: count ${count}, buckets ${values.at(-1)}`);
    if (!group.some((sample) => sample.name === `${name}_sum`)) fail(`${key}: no sum`);
  }
}
