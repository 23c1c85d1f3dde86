/** What the main thread and the upkeep thread tell each other: plain data. */

import type { DeviceDescription } from "../tree/description.ts";

/** What the upkeep thread gets when it is started. */
export interface UpkeepData {
  readonly devices: readonly DeviceDescription[];
  /** Its number among the threads of the mount: of its counters and locks. */
  readonly thread: number;
  /** The counters of all threads. */
  readonly counters: SharedArrayBuffer;
  /** Of `createStreamStates`. */
  readonly streams: SharedArrayBuffer;
  /** Of `createRequestProgress`. */
  readonly progress: SharedArrayBuffer;
}

/** What is asked for and done some time. */
export type UpkeepNotice =
  /** A device needs maintenance; somebody has changed the state of its streaming. */
  | { readonly kind: "maintain" | "stream"; readonly device: number }
  /** End all streaming between two steps. */
  | { readonly kind: "stop-streaming" };

/** What is asked for and waited for, and what is answered. */
export interface UpkeepAnswers {
  /** Start to stream all devices that can be: what the user should know of the others, a line each. */
  readonly "start-streaming": readonly string[];
  /** Make durable what was written, as far as that can be done. */
  readonly flush: undefined;
  /** Close all disks, which no other thread uses any more, and end: whether all of it is durable. */
  readonly close: boolean;
}

export type UpkeepQuestion =
  | { readonly kind: "start-streaming"; readonly limit: number | undefined }
  | { readonly kind: "flush" }
  | { readonly kind: "close" };

export type UpkeepTask = UpkeepNotice | UpkeepQuestion;

/** What the upkeep thread tells: answers come in the order of the questions. */
export type UpkeepMessage =
  | { readonly kind: "answer"; readonly answer: UpkeepAnswers[keyof UpkeepAnswers] }
  /** The files below the image of a device are closed. */
  | { readonly kind: "backing-closed"; readonly device: number };
