Feature: Sessions and eviction
  Turns that belong together are a session: it has a number of turns and a time that it may stay idle, and its next turn finds
  what the engine still holds of the conversation.

  Background:
    Given a server with 2 slots that keeps what it holds of 1 idle session

  Scenario: Each accepted task is a turn
    Given a session that may have 3 turns
    When it takes 2 turns
    Then it has 2 turns, and 1 is left

  Scenario: One turn too many is refused before the queue
    Given a session that may have 2 turns
    When it takes 2 turns
    And the client asks for one more turn
    Then it is refused with 409 "SESSION_TURNS_EXCEEDED"
    And no task of it waits

  Scenario: A session that stays idle for too long is over, and a late turn is told so
    Given a session that may stay idle for 200 ms
    When it takes 1 turn
    And it has been idle for longer than that
    And the client asks for one more turn
    Then it is refused with 409 "SESSION_EXPIRED"

  Scenario: A session lives as long as a task of it runs
    Given a session that may stay idle for 200 ms
    When a task of it runs for longer than that
    Then it is open as long as the task runs, and over some time after that

  Scenario: The next turn finds what the engine holds
    Given a session that may have 8 turns
    When it takes 2 turns
    Then its last turn found its conversation in the engine

  Scenario: Under pressure the longest idle session gives up what the engine holds of it
    Given a session that may have 8 turns
    And another session that may have 8 turns
    When the first takes 1 turn
    And the other takes 1 turn
    Then the engine holds the other, and nothing of the first
    And the first can take another turn all the same

  Scenario: What was deleted is gone, and deleting it again does no harm
    Given a session that may have 8 turns
    When it takes 1 turn
    And the client deletes the session
    And the client deletes the session
    Then the session is not open any more
