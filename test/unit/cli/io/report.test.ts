/** Sizes, times and dumps in the words of qemu-io: what qemu-io 7.2 prints was seen. */

import { describe, expect, it } from "vitest";
import { amountText, dumpText, transferText } from "../../../../src/cli/io/report.ts";

const KIB = 1024;

describe("amountText", () => {
  it.each([
    [0, "0 bytes"],
    [1, "1 bytes"],
    [1023, "1023 bytes"],
    [KIB, "1 KiB"],
    [1536, "1.500 KiB"],
    // Half a thousandth goes to the even one.
    [1088, "1.062 KiB"],
    [1216, "1.188 KiB"],
    // Less than a double tells above a half.
    [13_072_260_868_396_286, "11.611 PiB"],
    [10_485_760, "10 MiB"],
    [10_420_224, "9.938 MiB"],
    [KIB ** 3 - 1, "1024 MiB"],
    [KIB ** 4, "1 TiB"],
    [KIB ** 5, "1 PiB"],
    [2 ** 63, "8 EiB"],
    [415.774122, "415.774122 bytes"],
  ])("of %d is %s", (bytes, text) => {
    expect(amountText(bytes)).toBe(text);
  });
});

describe("transferText", () => {
  const transfer = { verb: "read", offset: 512, count: 65536, seconds: 0.0123 };

  it("tells people what was done and how fast", () => {
    expect(transferText(transfer, "people")).toBe(
      "read 65536/65536 bytes at offset 512\n" +
        "64 KiB, 1 ops; 00.01 sec (5.081 MiB/sec and 81.3008 ops/sec)\n",
    );
  });

  it("tells programs the same in one line", () => {
    expect(transferText(transfer, "programs")).toBe("65536,1,0:00:00.01,5328130.081,81.301\n");
  });

  it.each([
    [1.23, "0:00:01.23"],
    [61.5, "0:01:01.50"],
    [3723.25, "1:02:03.25"],
  ])("writes %d seconds as %s", (seconds, text) => {
    expect(transferText({ ...transfer, seconds }, "people")).toContain(`1 ops; ${text} (`);
  });
});

describe("dumpText", () => {
  it("has sixteen bytes in a line, and letters and digits beside them", () => {
    const bytes = Buffer.from("q() { echo Z9\0\xff@", "latin1");
    expect(dumpText(Buffer.concat([bytes, Buffer.of(0x41)]), 0x1000)).toBe(
      "00001000:  71 28 29 20 7b 20 65 63 68 6f 20 5a 39 00 ff 40  q.....echo.Z9...\n" +
        "00001010:  41  A\n",
    );
  });

  it("of no bytes is empty", () => {
    expect(dumpText(new Uint8Array(), 0)).toBe("");
  });

  it("has offsets of more than eight digits in full", () => {
    expect(dumpText(Buffer.of(0), 2 ** 33)).toBe("200000000:  00  .\n");
  });
});
