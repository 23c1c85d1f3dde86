/** What the rounds of a measurement collect, and their order. */

import type { ServerName } from "./servers.ts";

/** Samples by server, then by cell. */
export class Samples<Cell> {
  readonly #lists = new Map<ServerName, Map<Cell, number[]>>();

  add(server: ServerName, cell: Cell, sample: number): void {
    const ofServer = this.of(server);
    const list = ofServer.get(cell);
    if (list === undefined) ofServer.set(cell, [sample]);
    else list.push(sample);
    this.#lists.set(server, ofServer);
  }

  of(server: ServerName): Map<Cell, number[]> {
    return this.#lists.get(server) ?? new Map<Cell, number[]>();
  }
}

/** The same items, beginning with another one in each round. */
export function rotated<T>(items: readonly T[], round: number): T[] {
  const first = items.length === 0 ? 0 : round % items.length;
  return [...items.slice(first), ...items.slice(0, first)];
}
