// Leaves an image as a crash of QEMU leaves it: dirty, with what was written until then.

import { attempt } from "./run.ts";

/** Carries out writes in a qemu-io that then ends through abort(3), without closing the image. */
export async function crashAfter(
  image: string,
  format: "qcow2" | "qed",
  commands: readonly string[],
): Promise<void> {
  const args = [...commands, "abort"].flatMap((command) => ["-c", command]);
  const { status } = await attempt("qemu-io", ["-f", format, ...args, image]);
  if (status !== undefined) {
    throw new Error(`qemu-io ended with status ${status} although it was to abort`);
  }
}
