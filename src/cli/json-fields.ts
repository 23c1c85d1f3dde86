/** Fields of JSON that a daemon made, perhaps an older one: what is missing or of another type is as if it were not there. */

export type JsonFields = Readonly<Record<string, unknown>>;

export function asRecord(value: unknown): JsonFields | undefined {
  if (typeof value !== "object" || value === null || Array.isArray(value)) return undefined;
  return Object.fromEntries(Object.entries(value));
}

export function recordIn(fields: JsonFields, name: string): JsonFields | undefined {
  return asRecord(fields[name]);
}

/** 0 if it is missing. */
export function numberIn(fields: JsonFields, name: string): number {
  const value = fields[name];
  return typeof value === "number" ? value : 0;
}
