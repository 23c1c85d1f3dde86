/**
 * What a benchmark has to undo (mounts, processes, files), last first, also after an error or
 * Ctrl-C.
 */

export class CleanupStack {
  readonly #steps: (() => Promise<void>)[] = [];

  /** Add a step. It runs once, before all steps added earlier. */
  defer(step: () => Promise<void>): void {
    this.#steps.push(step);
  }

  /**
   * Run all steps. A step that fails is reported on stderr and does not keep the others from
   * running.
   */
  async unwind(): Promise<void> {
    for (let step = this.#steps.pop(); step !== undefined; step = this.#steps.pop()) {
      try {
        await step();
      } catch (error) {
        process.stderr.write(`bench: cleaning up: ${errorText(error)}\n`);
      }
    }
  }
}

export function errorText(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
