/** The upkeep thread: maintains, streams and closes the disks of a mount, as the main thread tells it to. */

import { parentPort, workerData } from "node:worker_threads";
import { closeBelow } from "../block/open-chain.ts";
import { RequestProgress } from "../threads/request-progress.ts";
import { Maintenance } from "./maintenance.ts";
import { StreamJobs } from "./stream-jobs.ts";
import type { UpkeepAnswers, UpkeepData, UpkeepMessage, UpkeepTask } from "./upkeep-tasks.ts";

const data: UpkeepData = workerData;
const say = (message: UpkeepMessage): void => parentPort?.postMessage(message);
const progress = new RequestProgress(data.progress, data.thread);
const maintenance = new Maintenance(data.devices, { ...data, progress });
const streams = new StreamJobs({
  devices: data.devices,
  states: data.streams,
  counters: data.counters,
  progress,
  diskOf: (device) => maintenance.diskOf(device),
  closeBacking: (device) => {
    const description = data.devices[device];
    if (description !== undefined) closeBelow(description);
    say({ kind: "backing-closed", device });
  },
});

function answer(given: UpkeepAnswers[keyof UpkeepAnswers]): void {
  say({ kind: "answer", answer: given });
}

function work(task: UpkeepTask): void {
  switch (task.kind) {
    case "maintain":
      maintenance.maintain(task.device);
      break;
    case "stream":
      streams.wake(task.device);
      break;
    case "stop-streaming":
      streams.stop();
      break;
    case "start-streaming":
      answer(streams.startAll(task.limit));
      break;
    case "flush":
      maintenance.flushAll();
      answer(undefined);
      break;
    case "close":
      answer(maintenance.close());
      parentPort?.close();
  }
}

parentPort?.on("message", (task: UpkeepTask) => progress.during(() => work(task)));
