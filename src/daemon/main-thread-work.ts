/** What the main thread does for those that serve requests. */

import type { TreeThread } from "../tree/description.ts";

export interface MainThreadWork {
  /** A device needs maintenance. */
  maintain(device: number): void;
  /** Somebody has changed the state of a device's streaming. */
  stream(device: number): void;
}

/** For a tree that the main thread itself serves: not at once, a request is being answered. */
export function afterRequest(
  work: MainThreadWork,
): Pick<TreeThread, "requestMaintenance" | "wakeStream"> {
  return {
    requestMaintenance: (device) => {
      setImmediate(() => work.maintain(device));
    },
    wakeStream: (device) => {
      setImmediate(() => work.stream(device));
    },
  };
}
