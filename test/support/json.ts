// Looks into parsed JSON without trusting its shape.

/** The value as an object; fails if it is none. */
export function asRecord(value: unknown): Readonly<Record<string, unknown>> {
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new Error(`an object expected, not ${JSON.stringify(value)}`);
  }
  return Object.fromEntries(Object.entries(value));
}

/** The value as an array; fails if it is none. */
export function asArray(value: unknown): readonly unknown[] {
  if (!Array.isArray(value)) {
    throw new Error(`an array expected, not ${JSON.stringify(value)}`);
  }
  return value;
}

export function numberIn(record: Readonly<Record<string, unknown>>, name: string): number {
  const value = record[name];
  if (typeof value !== "number") {
    throw new Error(`${name}: a number expected, not ${JSON.stringify(value)}`);
  }
  return value;
}

export function booleanIn(record: Readonly<Record<string, unknown>>, name: string): boolean {
  const value = record[name];
  if (typeof value !== "boolean") {
    throw new Error(`${name}: a boolean expected, not ${JSON.stringify(value)}`);
  }
  return value;
}

function isObject(value: unknown): value is object {
  return typeof value === "object" && value !== null;
}

/**
 * Where `actual` differs from `wanted`, one line each. Fields that only `actual` has are no
 * difference: newer versions of QEMU print more than older ones.
 */
export function missingOrDifferent(actual: unknown, wanted: unknown, at = "$"): string[] {
  if (!isObject(wanted) || !isObject(actual) || Array.isArray(wanted) !== Array.isArray(actual)) {
    return Object.is(actual, wanted)
      ? []
      : [`${at} is ${JSON.stringify(actual)}, wanted ${JSON.stringify(wanted)}`];
  }
  const differences =
    Array.isArray(wanted) && Array.isArray(actual) && wanted.length !== actual.length
      ? [`${at} has ${actual.length} elements, wanted ${wanted.length}`]
      : [];
  const values = asLookup(actual);
  for (const [name, value] of Object.entries(wanted)) {
    differences.push(...missingOrDifferent(values.get(name), value, `${at}.${name}`));
  }
  return differences;
}

function asLookup(value: object): Map<string, unknown> {
  return new Map(Object.entries(value));
}
