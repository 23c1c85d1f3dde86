/** A number somewhere in another program's JSON. */

/** Undefined if there is no number at this path in the parsed document. */
export function numberAt(document: unknown, path: readonly string[]): number | undefined {
  let value = document;
  for (const key of path) {
    value = typeof value === "object" && value !== null ? Reflect.get(value, key) : undefined;
  }
  return typeof value === "number" ? value : undefined;
}
