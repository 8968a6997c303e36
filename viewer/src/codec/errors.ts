/** What went wrong, as the exit codes of `aic` tell it apart: the file is damaged; it is whole, but this
 * page cannot decode it; it is too large; or none of these. */
export type Fault = "corrupt" | "incompatible" | "limit" | "internal";

/** Every error that is raised on purpose. The message is one sentence. */
export class AicError extends Error {
  readonly fault: Fault;

  constructor(fault: Fault, message: string) {
    super(message);
    this.name = "AicError";
    this.fault = fault;
  }
}

export function corrupt(message: string): AicError {
  return new AicError("corrupt", message);
}

export function incompatible(message: string): AicError {
  return new AicError("incompatible", message);
}

/** The error to show for anything that was thrown: itself, a lack of memory, or what should never happen. */
export function asAicError(thrown: unknown): AicError {
  if (thrown instanceof AicError) return thrown;
  const text = thrown instanceof Error ? thrown.message : String(thrown);
  // Neither browsers nor the runtime have an error of their own for it: a RangeError, "out of memory",
  // "Failed to allocate", std::bad_alloc.
  if (thrown instanceof RangeError || /out of memory|alloc/i.test(text)) {
    return new AicError("limit", "not enough memory for a picture of this size");
  }
  const line = text.replace(/\s+/g, " ").slice(0, 200);
  return new AicError("internal", `internal error: ${line}`);
}
