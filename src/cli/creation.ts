/** The files of a new image, which a signal keeps from being made. */

import type { PlannedImage } from "../block/create-image.ts";
import { CreateJob, type Remainder } from "../block/create-job.ts";
import { runLongWork } from "./long-work.ts";
import { PiecesWork } from "./pieces-work.ts";
import type { StopSignal } from "./stop-signals.ts";

/** What is left of an image that was not made, for messages. */
const REMAINDERS: Readonly<Record<Remainder, string>> = {
  nothing: "it was removed",
  untouched: "it is as it was",
  empty: "what was there before is lost, and it is empty now",
  overwritten: "what was there before is lost, and it is no image",
};

/** A signal came before the image was complete. */
export interface StoppedCreation {
  readonly signal: StopSignal;
  /** What has become of it: the end of a message. */
  readonly remainder: string;
}

/**
 * Carry out a plan. From here on signals do not end the process.
 *
 * @returns undefined: the image is there, complete and durable
 * @throws {TsimgfsError} no new file is left
 */
export async function createImage(plan: PlannedImage): Promise<StoppedCreation | undefined> {
  const job = new CreateJob(plan);
  const signal = await runLongWork(new PiecesWork(job), { progress: false });
  return signal && { signal, remainder: REMAINDERS[job.abandon()] };
}
