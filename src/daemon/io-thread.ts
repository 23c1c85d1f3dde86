/** An I/O thread: makes its own tree and buffers, and serves requests until the mount is gone. */

import { parentPort, workerData } from "node:worker_threads";
import { ClusterCache } from "../formats/compression/cluster-cache.ts";
import { QueuePoll } from "../fuse/queue-poll.ts";
import { serveRequests } from "../fuse/request-loop.ts";
import { RequestProgress } from "../threads/request-progress.ts";
import { ThreadCrew } from "../threads/thread-crew.ts";
import { Tree } from "../tree/tree.ts";
import { becomeIoFlusher } from "./io-flusher.ts";
import { type IoThreadData, type IoThreadMessage, waitForStart } from "./io-thread-start.ts";

const data: IoThreadData = workerData;
const start = waitForStart(data);
if (start !== undefined) {
  const { tree, ownership, fd, dataMax } = start;
  const resources = { clusterCache: new ClusterCache() };
  const say = (message: IoThreadMessage): void => parentPort?.postMessage(message);
  const progress = new RequestProgress(start.progress, data.thread);
  const thread = {
    thread: data.thread,
    progress,
    requestMaintenance: (device: number): void => say({ kind: "maintain", device }),
    wakeStream: (device: number): void => say({ kind: "stream", device }),
  };
  const server = { tree: new Tree(tree, resources, thread), ownership };
  // The first thread has started before the daemon became one.
  becomeIoFlusher();
  say({ kind: "serving" });
  const queue = new QueuePoll(fd);
  const crew = new ThreadCrew(start.crew, () => queue.hasRequest());
  serveRequests(server, { fd, dataMax, crew, progress });
}
